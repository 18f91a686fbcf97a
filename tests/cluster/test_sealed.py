"""Variables of a job, encrypted with the cluster's token."""

import base64
import json
import os
import re
import subprocess
import sys

import pytest
import workers

from cluster.executor import UserError
from cluster.sealed import VARIABLE, open_sealed, seal
from cluster.source import source_digest
from cluster.worker import WorkerActor
from tests.cluster.head import ROOT, TOKEN

SECRETS = {"AWS_SECRET_ACCESS_KEY": "hunter2/+=", "NAME": "Zoë\n"}
HERE, THERE = {"RAY_AUTH_TOKEN": TOKEN}, {"RAY_AUTH_TOKEN": "b" * 64}


def test_they_come_out_as_they_went_in():
    job = {**HERE, **seal(SECRETS, HERE)}
    open_sealed(job)
    assert {name: job[name] for name in SECRETS} == SECRETS


def test_nothing_of_them_can_be_read_on_the_way():
    """Not in any base64 either; and twice the same variables are not seen to be the same."""
    first, second = (seal(SECRETS, HERE)[VARIABLE] for _ in range(2))
    raw = base64.urlsafe_b64decode(first)
    for value in (*SECRETS, *SECRETS.values(), TOKEN):
        assert value not in first
        assert value.encode() not in raw
        assert json.dumps(value).encode() not in raw
    assert first != second


def test_another_token_does_not_open_them():
    with pytest.raises(UserError, match="set RAY_AUTH_TOKEN on every node") as raised:
        open_sealed({**THERE, **seal(SECRETS, HERE)})
    assert "hunter2" not in str(raised.value)


def test_an_altered_text_is_not_opened():
    sealed = seal(SECRETS, HERE)[VARIABLE]
    altered = sealed[:40] + ("A" if sealed[40] != "A" else "B") + sealed[41:]
    with pytest.raises(UserError):
        open_sealed({**HERE, VARIABLE: altered})


def test_the_token_may_lie_where_ray_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(f"{TOKEN}\n")
    (tmp_path / "elsewhere").write_text(f"{TOKEN}\n")
    for environment in (HERE, {}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "elsewhere")}):
        job = {**environment, **seal(SECRETS, HERE)}
        open_sealed(job)
        assert job["NAME"] == SECRETS["NAME"]


def test_without_a_token_nothing_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="there is no token here") as raised:
        seal(SECRETS, {})
    assert "hunter2" not in str(raised.value)


def test_without_sealed_variables_nothing_changes():
    environment = {"A": "1"}
    open_sealed(environment)
    assert environment == {"A": "1"}


def test_a_command_is_run_with_them_and_its_exit_code_is_kept():
    code = "import os, sys; print(os.environ['AWS_SECRET_ACCESS_KEY']); sys.exit(3)"
    command = [sys.executable, "-m", "cluster.sealed", sys.executable, "-c", code]
    job = {"PATH": "/usr/bin:/bin", **HERE, **seal(SECRETS, HERE)}
    ended = subprocess.run(command, cwd=ROOT, env=job, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "hunter2/+=\n"), ended.stderr


def test_a_worker_opens_them_before_it_builds(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    (variable,) = seal(SECRETS).items()
    monkeypatch.setenv(*variable)
    reply = WorkerActor().build("workers:Square", b"\x80\x04N.", workers.__file__, source_digest("workers"))
    assert reply.failure is None, reply.trace
    assert re.sub(r"\s", "", os.environ.pop("NAME")) == "Zoë"
    assert os.environ.pop("AWS_SECRET_ACCESS_KEY") == "hunter2/+="
