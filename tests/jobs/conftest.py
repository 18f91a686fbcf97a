"""One world and one plain audit of it for all tests of the job; whoever changes anything does so in a folder of its
own.
"""

import sys

import pytest

import jobs.audit
import jobs.execute
from concept_trak.config import AuditConfig
from jobs.configure import main
from tests.jobs.world import Found, World, build


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def baseline(world, tmp_path_factory) -> Found:
    """What other ways of doing the same audit are compared with: 48 rows in 6 shards, serial, batches of 8."""
    return world.audit(tmp_path_factory.mktemp("baseline"))


def everything_in(folder) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.fixture
def refused(world, tmp_path, monkeypatch, capsys):
    """Runs the job as the command line does, and returns what it says when it refuses. Nothing may be written then."""

    def start_workers(cluster, budget):
        raise AssertionError("the mistake was found only after the workers were asked for")

    def run(*more: str, store: object = tmp_path / "store", **chosen: str) -> str:
        monkeypatch.setattr(jobs.execute, "executor", start_workers)
        monkeypatch.setattr(sys, "argv", ["jobs.audit", *world.arguments(str(store), *more, **chosen)])
        before = everything_in(tmp_path)
        with pytest.raises(SystemExit) as ended:
            main(jobs.audit.audit, "config", AuditConfig, jobs.audit.AuditRunConfig)
        assert everything_in(tmp_path) == before, "a refused run leaves something behind"
        said = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        (message,) = [line for line in said if line.startswith("error: ")]
        assert said[-1] == message, "something is said after the message"
        assert not any("Traceback" in line for line in said)
        return message

    return run
