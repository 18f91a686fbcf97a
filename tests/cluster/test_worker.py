"""Errors are classified where they are raised; sources are compared before anything is imported."""

import sys
import time
from functools import partial

import pytest
import torch
import workers
from numpy.linalg import LinAlgError

from cluster.executor import Failure, Resources, Task, UserError, imported, package_of
from cluster.resources import actor_options, capacity
from cluster.source import StaleCode, require_same_source, source_digest
from cluster.worker import answer, classify
from concept_trak import UserError as LibraryUserError


class EndpointConnectionError(Exception):
    """Named as botocore's, which does not derive from OSError."""

    __module__ = "botocore.exceptions"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), Failure.MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.MEMORY),
        (ConnectionResetError(), Failure.INFRASTRUCTURE),
        (TimeoutError(), Failure.INFRASTRUCTURE),
        (OSError(28, "no space left on device"), Failure.INFRASTRUCTURE),
        (EndpointConnectionError(), Failure.INFRASTRUCTURE),
        (torch.AcceleratorError(), Failure.INFRASTRUCTURE),
        (FileNotFoundError(), Failure.APPLICATION),
        (KeyError("x"), Failure.APPLICATION),
        (UserError("x"), Failure.INPUT),
        (LibraryUserError("x"), Failure.INPUT),
        (ValueError("x"), Failure.APPLICATION),
        (LinAlgError("singular matrix"), Failure.APPLICATION),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), Failure.APPLICATION),
        (caused(RuntimeError("a bug"), UserError("x")), Failure.APPLICATION),
        (caused(RuntimeError("while reading"), caused(ValueError("x"), MemoryError())), Failure.MEMORY),
        (caused(RuntimeError("while reading"), ConnectionError()), Failure.INFRASTRUCTURE),
        (caused(UserError("no store there"), ConnectionError()), Failure.INPUT),
    ],
    ids=repr,
)
def test_classes_of_errors(error, failure):
    assert classify(error) is failure


def test_the_real_allocator_of_torch_counts_as_memory():
    reply = answer(lambda: torch.empty(2**56))
    assert reply.failure is Failure.MEMORY, f"torch changed its words: {reply.message}"


def test_an_answer_carries_the_traceback_and_says_when_the_process_is_lost():
    def fail():
        raise torch.AcceleratorError("unspecified launch failure")

    reply = answer(fail)
    assert "in fail" in reply.trace
    assert reply.message == "unspecified launch failure"
    assert reply.lost, "a process whose device context is gone fails every later item"
    assert not answer(lambda: 1 / 0).lost


def test_source_digest_sees_names_and_bytes_and_does_not_import(tmp_path, monkeypatch):
    package = tmp_path / "digested"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "inner" / "a.py").write_text("one = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_digest("digested")
    assert before == source_digest("digested")
    (package / "notes.txt").write_text("not source")
    assert before == source_digest("digested")
    (package / "inner" / "a.py").rename(package / "inner" / "b.py")
    renamed = source_digest("digested")
    (package / "inner" / "b.py").write_text("one = 2")
    assert len({before, renamed, source_digest("digested")}) == 3, "a renamed or changed file keeps the digest"
    assert "digested" not in sys.modules


def test_stale_code_names_both_places_and_the_remedy():
    with pytest.raises(
        StaleCode, match=r"would run workers from .*workers\.py .* the driver runs /elsewhere"
    ) as raised:
        require_same_source("workers", "/elsewhere", "0" * 64)
    assert "remove the installed copy or start from the same working directory" in str(raised.value)


def test_a_package_that_is_not_there():
    with pytest.raises(ValueError, match="no package absent_package"):
        source_digest("absent_package")


class Outer:
    class Inner(workers.Square):
        """Lies in a class, where another process finds it too."""


@pytest.mark.parametrize("worker", [workers.Square, Outer.Inner, time.sleep, partial])
def test_what_a_task_sends_leads_another_process_to_the_same_worker(worker):
    module, _, name = Task(worker, None).entry.partition(":")
    assert imported(module, name) is worker


def from_main():
    """As if defined in the program that was started."""


from_main.__module__ = "__main__"


def renamed():
    """As if its name had been given to something else since."""


renamed.__qualname__ = "from_main"


@pytest.mark.parametrize("worker", [lambda config: abs, from_main, renamed, partial(workers.Square), "workers:Square"])
def test_a_worker_that_no_other_process_can_import_is_refused(worker):
    with pytest.raises(TypeError, match="defined at the top of a module"):
        Task(worker, None)


def test_a_worker_of_a_functions_body_is_refused():
    class Local(workers.Square):
        pass

    with pytest.raises(TypeError, match=r"<locals>\.Local"):
        Task(Local, None)


def test_the_package_of_an_entry_is_its_top_level_name():
    assert package_of("concept_trak.audit.gram:Solve") == "concept_trak"


def test_resources_must_be_something():
    with pytest.raises(ValueError, match="some CPU or GPU"):
        Resources(cpus=0)


def test_capacity_counts_whole_workers_per_living_node():
    def node(alive=True, **resources):
        return {"Alive": alive, "Resources": resources}

    nodes = [node(CPU=8.0, GPU=2.0, memory=10.0), node(CPU=3.0), node(alive=False, CPU=64.0, GPU=8.0)]
    assert capacity(nodes, Resources(cpus=2)) == 5
    assert capacity(nodes, Resources(cpus=1, gpus=1)) == 2
    assert capacity(nodes, Resources(cpus=1, gpus=0.1)) == 8
    assert capacity(nodes, Resources(cpus=1, memory=6)) == 1
    assert capacity([node(CPU=1.2)], Resources(cpus=0.1)) == 12, "floats must not lose a worker"


def test_actor_options_leave_restarts_to_the_driver_and_hide_gpus_not_asked_for():
    options = actor_options(Resources(cpus=2.5), {"OMP_NUM_THREADS": "1", "EXTRA": "x"})
    assert options["max_restarts"] == options["max_task_retries"] == 0
    environment = options["runtime_env"]["env_vars"]
    assert environment == {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "EXTRA": "x",
    }
    assert "CUDA_VISIBLE_DEVICES" not in actor_options(Resources(gpus=0.5), {})["runtime_env"]["env_vars"]
