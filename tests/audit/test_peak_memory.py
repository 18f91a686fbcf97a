"""The memory that a preflight states against the memory that a worker takes, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

from concept_trak.audit.peak_memory import MemoryByBatch, PeakMemory
from tests.audit.memory_by_family import FAMILIES

NEAR = 0.15


def test_a_batch_that_did_not_run_is_on_the_line_through_the_two_largest():
    memory = MemoryByBatch({1: PeakMemory(50, 0), 2: PeakMemory(100, 10), 4: PeakMemory(140, 30)})
    assert memory.at(4) == PeakMemory(140, 30)
    assert memory.at(16) == PeakMemory(140 + 12 * 20, 30 + 12 * 10)
    assert memory.at(16, per_sample=5) == PeakMemory(140 + 12 * 20 + 16 * 5, 30 + 12 * 10)
    assert MemoryByBatch({1: PeakMemory(7, 3)}).at(9) == PeakMemory(7, 3), "one batch has no line"
    assert MemoryByBatch({1: PeakMemory(9, 3), 2: PeakMemory(8, 3)}).at(4) == PeakMemory(8, 3), "noise is no slope"


def test_each_peak_is_that_of_its_own_batch():
    memory = MemoryByBatch()
    megabyte = 2**20
    large = memory.measured(64, lambda: len(b"x" * (64 * megabyte)))
    memory.measured(1, lambda: len(b"x" * megabyte))
    assert large == 64 * megabyte, "the result of the work is returned"
    assert memory.peaks[64].host - memory.peaks[1].host > 32 * megabyte
    assert PeakMemory(1, 5).largest(PeakMemory(3, 2)) == PeakMemory(3, 5)


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
