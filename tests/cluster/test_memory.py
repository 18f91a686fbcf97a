"""A node whose memory runs out: Ray's monitor kills a worker, and its item is done again at half the batch."""

import logging
from pathlib import Path

import pytest
import workers

from cluster.executor import Budgets, Task
from tests.cluster.conftest import HERE

ROOM = 3 * 2**30  # bytes above what is used now at which the monitor strikes: what others here may take meanwhile
NEEDED = 7 * 2**30  # bytes free, so that the test itself is no danger to the machine


def counted() -> tuple[int, int]:
    """(all, used) bytes as the monitor counts them: of the control group only if it may have less than the machine."""
    from ray._private.utils import get_system_memory, get_used_memory

    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    machine = {name: 1024 * int(size) for name, size, *_ in lines}
    if get_system_memory() < machine["MemTotal:"]:
        return get_system_memory(), get_used_memory()
    return machine["MemTotal:"], machine["MemTotal:"] - machine["MemAvailable:"]


@pytest.fixture
def watchful_ray(monkeypatch):
    """Ray whose memory monitor looks ten times a second and allows little more than what is used now."""
    import ray

    from cluster.on_ray import OnRay  # before Ray itself: it sets what Ray reads when it is imported

    total, used = counted()
    if total - used < NEEDED:
        pytest.skip(f"{(total - used) / 2**30:.1f} GiB of memory are free, too little to let a worker fill some")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(used + ROOM) / total:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    executor = OnRay(workers=1, env_vars={"PYTHONPATH": HERE}, budgets=Budgets(infrastructure=0, application=0))
    executor.connect()
    yield executor
    ray.shutdown()


@pytest.mark.soak
def test_a_worker_that_the_monitor_kills_has_run_out_of_memory(watchful_ray, caplog):
    """The memory of the one it killed comes back slowly, so the monitor may strike the next item too."""
    caplog.set_level(logging.WARNING)
    outcomes = list(watchful_ray.map(Task(workers.Greedy, None), ["a", "greedy", "b"]))
    done = {outcome.item: outcome.result for outcome in outcomes}
    assert set(done) == {"a", "greedy", "b"}
    assert done["a"] == (1, 0), "nobody was greedy yet"
    assert done["greedy"][1] >= 1, "the batch was not halved"
    assert all(number == 1 + halvings for number, halvings in done.values()), (
        f"(attempt, halvings): the monitor's kill is counted as something else than memory: {done}"
    )
    assert "memory failure 1, tried again up to 3 times" in caplog.text
    assert "OutOfMemoryError" in caplog.text
