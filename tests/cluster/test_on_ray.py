"""What only real processes can show: they die, they linger, and they see an environment and sources of their own."""

import os
import pickle
import signal
import threading
import time
from importlib import import_module

import pytest
import workers
from workers import Settings

from cluster.executor import Budgets, InfrastructureExhausted, Resources, Task, WorkerFailed
from cluster.resources import actor_options
from tests.cluster.conftest import HERE
from tests.cluster.processes import alive, wait_until


def hung_workers(folder):
    return {int(path.name) for path in folder.iterdir()}


def kill_first_pid(folder):
    wait_until(lambda: list(folder.iterdir()), "a worker has left its pid")
    os.kill(int(next(folder.iterdir()).name), signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_its_item_done_again(on_ray, tmp_path):
    killer = threading.Thread(target=kill_first_pid, args=(tmp_path,))
    killer.start()
    outcomes = list(on_ray().map(Task(workers.Killable, Settings(folder=str(tmp_path))), ["a", "victim", "b", "c"]))
    killer.join()
    assert {outcome.item: outcome.result for outcome in outcomes} == {"a": 1, "victim": 2, "b": 1, "c": 1}
    assert len(outcomes) == 4, "an item came out twice"


@pytest.mark.parametrize("how", ["waits for ever", pytest.param("is stopped", marks=pytest.mark.soak)])
def test_a_worker_that_hangs_is_killed_and_its_item_done_again(on_ray, tmp_path, caplog, how):
    """Whether it still listens or not: a stopped process answers nothing. With a lease of 45 s Ray does not end it."""
    loads = []
    executor = on_ray(budgets=Budgets(lease=8.0))
    outcomes = list(
        executor.map(Task(workers.Hanging, Settings(str(tmp_path), how)), ["a", "victim", "b", "c"], watch=loads.append)
    )
    assert {outcome.item: outcome.result for outcome in outcomes} == {"a": 1, "victim": 2, "b": 1, "c": 1}, (
        "(attempts per item) only the item of the worker that hung is repeated, once"
    )
    assert len(outcomes) == 4, "an item came out twice"
    assert "infrastructure failure 1, tried again up to 10 times" in caplog.text
    assert "raise budget.lease" in caplog.text
    (pid,) = hung_workers(tmp_path)
    wait_until(lambda: not alive(pid), f"the end of the worker that hung ({pid}), which still holds its memory and GPU")
    assert 0 < max(load.running for load in loads) <= 2, "two workers never have more than two items"
    assert (loads[-1].running, loads[-1].retries) == (0, {"infrastructure": 1})


@pytest.mark.soak
def test_a_construction_that_hangs_is_ended_too(on_ray, tmp_path):
    executor = on_ray(workers=1, budgets=Budgets(lease=8.0))
    (outcome,) = executor.map(Task(workers.SlowlyBuilt, Settings(str(tmp_path))), ["a"])
    assert (outcome.result, outcome.attempts) == (1, 1), "a worker that never stood costs an item nothing"
    (pid,) = hung_workers(tmp_path)
    wait_until(lambda: not alive(pid), f"the end of the worker whose construction hung ({pid})")


def test_a_reply_that_came_in_time_counts_though_the_driver_looks_late(on_ray, tmp_path):
    """The driver is away, as when it is stopped or its storage is slow, until the lease of a done item is long over."""
    outcomes = on_ray(workers=1, budgets=Budgets(lease=4.0)).map(
        Task(workers.Leaving, Settings(str(tmp_path))), ["first", "second"]
    )
    first = next(outcomes)
    wait_until((tmp_path / "second").exists, "the second item is done, while the driver looks at the first")
    time.sleep(4.5)  # not synchronisation: the lease must run out
    (second,) = outcomes
    assert (first.attempts, second.attempts) == (1, 1), "an item that was done in time was done again"


def test_an_item_that_kills_its_workers_ends_with_exit_code_4_after_the_others(on_ray):
    ended = []
    with pytest.raises(InfrastructureExhausted, match="poison") as raised:
        ended.extend(on_ray(budgets=Budgets(infrastructure=1)).map(Task(workers.Suicidal, None), ["poison", *"abc"]))
    assert raised.value.exit_code == 4
    assert sorted(ended_item.item for ended_item in ended) == ["a", "b", "c", "poison"]


def test_a_closed_iteration_leaves_no_process(on_ray):
    outcomes = on_ray().map(Task(workers.Report, None), [0.0] * 4 + [200.0] * 4)
    pids = {next(outcomes).result["pid"] for _ in range(4)}
    outcomes.close()
    wait_until(lambda: not any(alive(pid) for pid in pids), f"processes {pids} are gone")


def test_a_worker_has_as_many_threads_as_cores_and_no_gpu_it_did_not_ask_for(on_ray):
    import ray

    cores = ray.cluster_resources()["CPU"]
    (outcome,) = on_ray().map(Task(workers.Report, None), [0.0], Resources(cpus=cores))
    environment = outcome.result["environment"]
    threads = [environment[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    assert threads == [str(int(cores))] * 3
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_a_result_that_cannot_travel_is_the_applications_error(on_ray):
    (outcome,) = on_ray(budgets=Budgets(application=0)).map(Task(workers.Unpicklable, None), ["abc"])
    assert "pickle" in outcome.error


def test_stale_code_on_a_worker_is_found_before_it_runs(on_ray, tmp_path, monkeypatch):
    for name, body in (
        ("fresh", "class Factory: pass"),
        ("stale", "raise RuntimeError('the stale package was imported')"),
    ):
        (tmp_path / name / "thrown_away").mkdir(parents=True)
        (tmp_path / name / "thrown_away" / "__init__.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path / "fresh"))
    executor = on_ray(env_vars={"PYTHONPATH": os.pathsep.join([str(tmp_path / "stale"), HERE])})
    with pytest.raises(WorkerFailed) as raised:
        list(executor.map(Task(import_module("thrown_away").Factory, None), [1]))
    assert raised.value.exit_code == 2
    text = str(raised.value)
    assert f"would run thrown_away from {tmp_path / 'stale' / 'thrown_away'}" in text
    assert f"the driver runs {tmp_path / 'fresh' / 'thrown_away'}" in text
    assert "remove the installed copy or start from the same working directory" in text


def test_a_configuration_is_unpickled_only_after_the_sources_agree(on_ray, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "only_here.py").write_text("class Settings: pass\nclass Factory: pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    only_here = import_module("only_here")
    assert pickle.loads(pickle.dumps(only_here.Settings()))
    with pytest.raises(WorkerFailed, match="no package only_here on ") as raised:
        list(on_ray().map(Task(only_here.Factory, only_here.Settings()), [1]))
    assert raised.value.exit_code == 2


def test_asking_for_more_than_this_machine_has_is_said_at_once(on_ray):
    with pytest.raises(ValueError, match=r"asks for \{'CPU': 1000.*lower the resources"):
        list(on_ray().map(Task(workers.Square, None), [1], Resources(cpus=1000)))


def test_workers_waiting_for_room_are_spoken_of(on_ray, monkeypatch, caplog):
    import ray

    monkeypatch.setattr("cluster.actor_pool.REMINDER", 0.5)
    everything = Resources(cpus=ray.cluster_resources()["CPU"])
    outcomes = list(on_ray(workers=2).map(Task(workers.Report, None), [1.5, 1.5], everything))
    assert len({outcome.result["pid"] for outcome in outcomes}) == 1, "the machine holds one such worker"
    assert "1 workers wait for a node; each asks for {'CPU'" in caplog.text


def test_an_environment_that_cannot_be_made_ends_with_exit_code_5(on_ray, monkeypatch):
    options = actor_options(Resources(), {}) | {"runtime_env": {"working_dir": "file:///absent.zip"}}
    monkeypatch.setattr("cluster.actor_pool.actor_options", lambda resources, env_vars: options)
    with pytest.raises(WorkerFailed, match="RuntimeEnvSetupError") as raised:
        list(on_ray().map(Task(workers.Square, None), [1]))
    assert raised.value.exit_code == 5
