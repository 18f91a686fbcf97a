"""Errors are classified where they are raised; sources are compared before anything is imported."""

import sys

import pytest
import torch
from numpy.linalg import LinAlgError

from cluster.executor import Failure, Resources, StaleCode, Task, UserError, source_digest
from cluster.resources import actor_options, capacity
from cluster.worker import agree_on_source, answer, build, classify
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
        agree_on_source("workers", "/elsewhere", "0" * 64)
    assert "remove the installed copy or start from the same working directory" in str(raised.value)


def test_a_package_that_is_not_there():
    with pytest.raises(ValueError, match="no package absent_package"):
        source_digest("absent_package")


@pytest.mark.parametrize("entry", ["workers", "workers:", ":Square", "__main__:Square"])
def test_an_entry_that_no_worker_can_import_is_refused(entry):
    with pytest.raises(ValueError, match="importable factory"):
        Task(entry, None)


def test_build_is_the_factory_of_the_configuration():
    assert build(Task("workers:Square", "settings")).config == "settings"


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
