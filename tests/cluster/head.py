"""A Ray head of our own that asks for a token, on ports of its own, beside whatever else runs on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOKEN = "a" * 64


@dataclass(frozen=True)
class Head:
    """Where it answers: the dashboard (and Jobs API), the address a driver joins, the metrics of this node."""

    dashboard: str
    address: str
    metrics: str


def environment(**more: str) -> dict[str, str]:
    usual = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return usual | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"} | more


@contextlib.contextmanager
def standing(folder: Path, **settings: str) -> Iterator[Head]:
    """A head with two cores in a process group of its own, until the block ends; `settings` are variables for it."""
    gcs, dashboard, agent, grpc, metrics = free_ports(5)
    log = folder / "log"
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}",
        f"--metrics-export-port={metrics}", "--object-store-memory=100000000", "--include-dashboard=true",
    ]  # fmt: skip
    with log.open("w") as out:
        variables = environment(RAY_AUTH_TOKEN=TOKEN, **settings)
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}", process, log)
        yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", f"http://127.0.0.1:{metrics}/metrics")
    finally:
        process.send_signal(signal.SIGTERM)  # --block stops the processes it started
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


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
