"""A bug of ours looks like a bug: a traceback and exit code 5, in a worker and in the driver, also for ValueError."""

import sys

import numpy as np
import pytest

import jobs.audit
from concept_trak.audit.featurize import FeaturizeWorker
from concept_trak.config import AuditConfig
from concept_trak.report import publish_audit
from jobs.configure import main


def numpys_own_error(*_: object) -> None:
    np.zeros(2) + np.zeros(3)


@pytest.fixture
def ended(world, tmp_path, monkeypatch, capsys):
    """Runs the job as the command line does; its exit code and what it wrote to stderr."""

    def run() -> tuple[int, str]:
        arguments = world.arguments(tmp_path / "store", "budget.application=0", data="few")
        monkeypatch.setattr(sys, "argv", ["jobs.audit", *arguments])
        with pytest.raises(SystemExit) as stop:
            main(jobs.audit.audit, "config", AuditConfig, jobs.audit.AuditRunConfig)
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err

    return run


def test_in_a_worker(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(FeaturizeWorker, "_computed", numpys_own_error)
    code, text = ended()
    assert code == 5, text
    assert "featurize: 2 of 2 failed" in text
    assert "Traceback" in text
    assert "could not be broadcast together" in text
    logs = sorted((tmp_path / "store/audits/first/failures/featurize").iterdir())
    assert len(logs) == 2, "a log for each failed shard"
    assert "numpys_own_error" in logs[0].read_text()


def test_in_the_driver(ended, monkeypatch):
    monkeypatch.setattr(publish_audit, "run_stages", numpys_own_error)
    code, text = ended()
    assert code == 5, text
    assert "Traceback" in text
    assert "numpys_own_error" in text


def test_what_the_user_can_mend_is_one_message(ended, world, monkeypatch):
    monkeypatch.setattr(type(world), "arguments", lambda *_, **__: ["damping=-1"])
    code, text = ended()
    assert code == 2
    assert text.startswith("error: damping=-1.0; expected auto or a positive number")
    assert "Traceback" not in text
