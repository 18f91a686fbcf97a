"""The peak memory of a worker for a batch, from batches that are smaller.

    bytes(n) = a + b n:    weights, tables and libraries, and what each sample of a batch adds

a and b are those of the line through the two largest batches that ran. Encoding and gradients each have a line of their
own, because the one that needs more for few samples may need less for many. Memory is that of the process on its
machine, and of PyTorch on a GPU, each at its peak.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class PeakMemory:
    """The most bytes that were in use at one time: of the process in its machine's memory, and on its GPU."""

    host: int
    device: int

    @classmethod
    def so_far(cls) -> "PeakMemory":
        """Since the process began, or since `reset`."""
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        return cls(_status_bytes("VmHWM"), device)

    @staticmethod
    def reset() -> None:
        """Begin again with what is in use now."""
        with suppress(OSError):  # a system that does not allow it: the peak is then that of all before as well
            RESET.write_text("5")
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def largest(self, other: "PeakMemory") -> "PeakMemory":
        return PeakMemory(max(self.host, other.host), max(self.device, other.device))


@dataclass(frozen=True)
class MemoryByBatch:
    """The peaks of batches that ran, by their number of samples."""

    peaks: dict[int, PeakMemory] = field(default_factory=dict)

    def measured(self, n: int, work: Callable[[], T]) -> T:
        """The result of `work` on n samples, whose peak is noted."""
        PeakMemory.reset()
        result = work()
        self.peaks[n] = PeakMemory.so_far()
        return result

    def at(self, n: int, per_sample: int = 0) -> PeakMemory:
        """The peak of a batch of n samples.

        Args:
            per_sample: bytes of the machine's memory that a worker needs for each sample beside what ran here.
        """
        *smaller, largest = sorted(self.peaks)
        peak, steps = self.peaks[largest], max(0, n - largest)
        host, device = peak.host, peak.device
        if smaller:
            less, between = self.peaks[smaller[-1]], largest - smaller[-1]
            host += max(0, host - less.host) * steps // between
            device += max(0, device - less.device) * steps // between
        return PeakMemory(host + per_sample * n, device)


def _status_bytes(key: str) -> int:
    """A number of this process's status; `getrusage` would count its parent's peak too."""
    return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
