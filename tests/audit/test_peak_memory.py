"""The memory that a preflight states against the memory that a worker takes, in processes of their own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from concept_trak.audit.peak_memory import GpuPeak, MemoryByBatch, PeakMemory
from tests.audit.memory_by_family import FAMILIES

NEAR = 0.15


def test_a_batch_that_did_not_run_is_on_the_line_through_the_two_largest():
    """On two GPUs, each of which has a line of its own."""

    def peak(host: int, *gpus: int) -> PeakMemory:
        return PeakMemory(host, tuple(GpuPeak(gpu, 1000) for gpu in gpus))

    memory = MemoryByBatch({1: peak(50, 0, 3), 2: peak(100, 10, 4), 4: peak(140, 30, 10)})
    assert memory.at(4) == peak(140, 30, 10)
    assert memory.at(16) == peak(140 + 12 * 20, 30 + 12 * 10, 10 + 12 * 3)
    assert memory.at(16, per_sample=5) == peak(140 + 12 * 20 + 16 * 5, 30 + 12 * 10, 10 + 12 * 3)
    assert MemoryByBatch({1: peak(7, 3)}).at(9, per_sample=1) == peak(16, 3), "one batch has no line"
    assert MemoryByBatch({1: peak(9, 3), 2: peak(8, 3)}).at(4) == peak(8, 3), "noise is no slope"


def test_each_peak_is_that_of_its_own_batch():
    memory = MemoryByBatch()
    megabyte = 2**20
    large = memory.measured(64, lambda: len(b"x" * (64 * megabyte)))
    memory.measured(1, lambda: len(b"x" * megabyte))
    assert large == 64 * megabyte, "the result of the work is returned"
    assert memory.peaks[64].host - memory.peaks[1].host > 32 * megabyte


def test_each_gpu_is_stated_beside_its_own_size():
    large, small = PeakMemory(1, (GpuPeak(5, 9), GpuPeak(2, 8))), PeakMemory(3, (GpuPeak(2, 9), GpuPeak(7, 8)))
    assert large.largest(small) == PeakMemory(3, (GpuPeak(5, 9), GpuPeak(7, 8)))
    assert large.largest(PeakMemory(3)) == replace(large, host=3), "before a GPU was used"
    both = PeakMemory(2 * 10**9, (GpuPeak(20 * 10**9, 24 * 10**9), GpuPeak(18 * 10**9, 16 * 10**9)))
    assert both.lines("at a batch of 8") == [
        "memory     2.00 GB in the worker, 20.00 of 24.00 GB on GPU 0, 18.00 of 16.00 GB on GPU 1, at a batch of 8",
        "memory     GPU 1 has less than that: lower model.batch, or raise cluster.gpus",
    ]
    assert PeakMemory(10**9).lines("now") == ["memory     1.00 GB in the worker, now"]


class FakeGpus:
    """Stands for torch.cuda on a machine without GPUs: two of 16 and 24 bytes, whose peaks a test sets."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.peaks = [0, 0]
        for name in ("device_count", "max_memory_allocated", "get_device_properties", "reset_peak_memory_stats"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "is_initialized", lambda: True)

    def device_count(self) -> int:
        return 2

    def max_memory_allocated(self, i: int) -> int:
        return self.peaks[i]

    def get_device_properties(self, i: int) -> SimpleNamespace:
        return SimpleNamespace(total_memory=(16, 24)[i])

    def reset_peak_memory_stats(self, i: int) -> None:
        self.peaks[i] = 0


def test_every_gpu_of_a_worker_is_measured_from_the_beginning_of_a_batch(monkeypatch):
    """The GPUs are fakes; what they show is that each is read, and is begun again."""
    gpus, memory = FakeGpus(monkeypatch), MemoryByBatch()

    def batch(*peaks: int) -> None:
        gpus.peaks = [max(pair) for pair in zip(gpus.peaks, peaks, strict=True)]

    batch(15, 23)
    memory.measured(1, lambda: batch(4, 9))
    memory.measured(2, lambda: batch(5, 11))
    assert memory.peaks[1].gpus == (GpuPeak(4, 16), GpuPeak(9, 24))
    assert memory.at(8).gpus == (GpuPeak(11, 16), GpuPeak(23, 24))


def test_a_gpu_that_the_worker_does_not_use_is_not_named():
    (line,) = PeakMemory(10**9, (GpuPeak(2 * 10**9, 24 * 10**9), GpuPeak(0, 24 * 10**9))).lines("a batch of 8")
    assert line == "memory     1.00 GB in the worker, 2.00 of 24.00 GB on GPU 0, a batch of 8"


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.soak), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_the_stated_memory_is_that_of_a_worker(device):
    """Of what a batch takes beside the process, within 15 %, for a batch twice as large as any that was measured.

    glibc keeps small blocks that are freed, so that a small batch may take none from the system; here it returns them.
    """
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.audit.memory_by_family", device]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **returning})
    figures = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [each["family"] for each in figures] == [*FAMILIES]
    for each in figures:
        start, stated, peak = each["host" if device == "cpu" else "device"]
        assert (each["timed"], each["batch"]) == (4, 8)
        assert peak - start > 20e6, f"{each['family']}: the batch is too small to be seen"
        assert stated - start == pytest.approx(peak - start, rel=NEAR), each["family"]
