"""Jobs on a real Ray head that asks for a token: exit codes, attempts, logs, and the message for a wrong token."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.head import TOKEN, environment, standing

ROOT = Path(__file__).resolve().parents[2]
ONE_JOB = """
import sys
from cluster import submission
jobs = submission.client(sys.argv[1])
for code in (0, 3):
    entry = f"{sys.executable} -c 'import os; print(os.environ[\\"GREETING\\"]); raise SystemExit({code})'"
    name = submission.submit(jobs, "week-1", entry, sys.argv[2], {"GREETING": "hello"}, [])
    print(name, "ended with", submission.follow(jobs, name, lambda text: print(text, end="")))
print(submission.attempts(jobs, "week-1"), submission.attempts(jobs, "week"))
submission.attempts = lambda jobs, audit: []  # as another driver saw it before either had submitted
try:
    submission.submit(jobs, "week-1", "true", sys.argv[2], {}, [])
except ValueError as error:
    print("refused:", error)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The dashboard's address of a head of our own."""
    with standing(tmp_path_factory.mktemp("head")) as head:
        yield head.dashboard


def python(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=120, check=False
    )


def test_exit_codes_logs_and_attempts_come_back(head, tmp_path):
    (tmp_path / "shipped.txt").write_text("one small file")
    done = python("-c", ONE_JOB, head, str(tmp_path), RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("hello") == 2
    assert "week-1-1 ended with 0" in done.stdout
    assert "week-1-2 ended with 3" in done.stdout
    assert "['week-1-1', 'week-1-2'] []" in done.stdout
    assert "refused: the cluster refused week-1-1" in done.stdout
    assert "give the same command again for the next one" in done.stdout


def test_a_wrong_token_is_one_message(head):
    done = python("-m", "jobs.submit", f"address={head}", "action=status", "audit=week-1", RAY_AUTH_TOKEN="b" * 64)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


def test_the_verbs_carry_an_audits_own_exit_code(head):
    """An audit without a model ends with 2 on the cluster, and so does the command that submitted it."""
    said = [f"address={head}", f"python={sys.executable}"]
    audit = ["--config-name", "demo", "audit=week-7", "model.path=/nowhere", "store=/tmp/nowhere"]
    done = python("-m", "jobs.submit", *said, "--", *audit, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "submitted  week-7-1" in done.stdout
    assert "Traceback" not in done.stderr
    status = python("-m", "jobs.submit", *said, "action=status", "audit=week-7", RAY_AUTH_TOKEN=TOKEN)
    assert "week-7-1: FAILED, exit code 2" in status.stdout
