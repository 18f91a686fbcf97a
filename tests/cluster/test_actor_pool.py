"""Processes outlast a map that ended well, for the next map of the same executor, and nothing else."""

import gc
import os
import signal

import pytest
import workers
from workers import Settings

from cluster.executor import Budgets, Resources, Task, WorkerFailed
from tests.cluster.processes import alive, wait_until

REPORT = Task(workers.Report, None)


def pids(executor, resources=Resources(), items=2):
    return {outcome.result["pid"] for outcome in executor.map(REPORT, [0.5] * items, resources)}


def test_the_next_map_has_the_same_processes_and_a_worker_of_its_own(on_ray):
    executor = on_ray()
    first = pids(executor)
    assert {outcome.result for outcome in executor.map(Task(workers.Square, None), [2, 3])} == {4, 9}
    assert pids(executor) <= first, "a process was started though one was idle"


def test_a_process_that_died_in_between_is_replaced_and_costs_no_item(on_ray):
    executor = on_ray(workers=1)
    (pid,) = pids(executor, items=1)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), f"{pid} is dead")
    (outcome,) = executor.map(REPORT, [0.0])
    assert outcome.attempts == 1, "an item was given to a process that was dead"
    assert outcome.result["pid"] != pid


def test_other_resources_have_other_processes(on_ray):
    executor = on_ray(workers=1)
    first, second = pids(executor, items=1), pids(executor, Resources(cpus=0.5), items=1)
    assert not first & second, "a process had another environment and another share of the machine"
    wait_until(lambda: not any(map(alive, first)), f"{first} hold what the second map may need")


@pytest.mark.parametrize("how", ["the executor is gone", "a map failed"])
def test_nothing_is_left_when(on_ray, how):
    executor = on_ray(budgets=Budgets(systemic=1))
    left = pids(executor)
    if how == "a map failed":
        with pytest.raises(WorkerFailed):
            list(executor.map(Task(workers.Unbuildable, Settings(word="no such layer")), [1, 2]))
    del executor
    gc.collect()
    wait_until(lambda: not any(map(alive, left)), f"processes {left} are gone")
