"""Jobs on a real Ray head that asks for a token: exit codes, attempts, logs, and the message for a wrong token."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a" * 64
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


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def environment(**more: str) -> dict[str, str]:
    usual = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return usual | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"} | more


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The dashboard's address of a head of our own, in a process group of its own."""
    gcs, dashboard, agent, grpc, metrics = free_ports(5)
    log = tmp_path_factory.mktemp("head") / "log"
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
        f"--metrics-export-port={metrics}", "--object-store-memory=100000000", "--include-dashboard=true",
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment(RAY_AUTH_TOKEN=TOKEN), start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{dashboard}", process, log)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.send_signal(signal.SIGTERM)  # --block stops the processes it started
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(log.read_text())


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
