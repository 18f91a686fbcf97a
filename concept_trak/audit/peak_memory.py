"""The peak memory of a worker for a batch, from batches that are smaller.

    bytes(n) = a + b n:    weights, tables and libraries, and what each sample of a batch adds

a and b are those of the line through the two largest batches that ran. Encoding and gradients each have a line of their
own, because the one that needs more for few samples may need less for many. Memory is that of the process on its
machine, and of PyTorch on each GPU that the worker uses, each at its peak.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class GpuPeak:
    """The most bytes that were in use at one time on one GPU, and the bytes that it has."""

    peak: int
    size: int


@dataclass(frozen=True)
class PeakMemory:
    """The most bytes that were in use at one time: of the process in its machine's memory, and on each of its GPUs."""

    host: int
    gpus: tuple[GpuPeak, ...] = ()

    @classmethod
    def so_far(cls) -> "PeakMemory":
        """Since the process began, or since `reset`."""
        gpus = (
            GpuPeak(torch.cuda.max_memory_allocated(i), torch.cuda.get_device_properties(i).total_memory)
            for i in _gpus_in_use()
        )
        return cls(_status_bytes("VmHWM"), tuple(gpus))

    @staticmethod
    def reset() -> None:
        """Begin again with what is in use now."""
        with suppress(OSError):  # a system that does not allow it: the peak is then that of all before as well
            RESET.write_text("5")
        for i in _gpus_in_use():
            torch.cuda.reset_peak_memory_stats(i)

    def largest(self, other: "PeakMemory") -> "PeakMemory":
        """The larger peak of each memory. A GPU that only one of the two has keeps its peak."""
        pairs = zip_longest(self.gpus, other.gpus)
        gpus = (max((gpu for gpu in pair if gpu), key=lambda gpu: gpu.peak) for pair in pairs)
        return PeakMemory(max(self.host, other.host), tuple(gpus))

    def lines(self, batch: str) -> list[str]:
        """Text for people: each memory with its size, and a line of advice for each GPU that has less.

        Args:
            batch: what the peaks are for.
        """
        used = ((i, gpu) for i, gpu in enumerate(self.gpus) if gpu.peak)
        pairs = (f"{gpu.peak / 1e9:.2f} of {gpu.size / 1e9:.2f} GB on GPU {i}" for i, gpu in used)
        short = [i for i, gpu in enumerate(self.gpus) if gpu.peak > gpu.size]
        return [
            f"memory     {', '.join([f'{self.host / 1e9:.2f} GB in the worker', *pairs])}, {batch}",
            *(f"memory     GPU {i} has less than that: lower model.batch, or raise cluster.gpus" for i in short),
        ]


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
        if not smaller:
            return replace(peak, host=peak.host + per_sample * n)
        less, between = self.peaks[smaller[-1]], largest - smaller[-1]

        def further(most: int, before: int) -> int:
            return most + max(0, most - before) * steps // between

        gpus = (replace(gpu, peak=further(gpu.peak, b.peak)) for gpu, b in zip(peak.gpus, less.gpus, strict=True))
        return PeakMemory(further(peak.host, less.host) + per_sample * n, tuple(gpus))


def _gpus_in_use() -> Sequence[int]:
    """The numbers of the GPUs that this process sees, once it has used one; before that, none."""
    return range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()


def _status_bytes(key: str) -> int:
    """A number of this process's status; `getrusage` would count its parent's peak too."""
    return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
