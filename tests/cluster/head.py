"""A Ray cluster of our own that asks for a token, on ports of its own, beside whatever else runs on this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a" * 64
# A machine that many share is slow, and not dead: Ray would give up a node that registers late, or answers late. Its
# workers are nice by default, and would wait for everybody else.
PATIENT = {"RAY_raylet_start_wait_time_s": "200", "RAY_health_check_failure_threshold": "40",
           "RAY_worker_niceness": "0"}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """Where it answers: the dashboard (and Jobs API), the address a driver joins, the metrics of this node.

    `folder` is where Ray keeps its logs and the files that jobs brought.
    """

    dashboard: str
    address: str
    metrics: str
    folder: Path


def environment(**more: str) -> dict[str, str]:
    """Of who has the token's mode and nothing of another Ray; `more` has the token itself, or where it lies."""
    usual = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return usual | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"} | more


@contextlib.contextmanager
def standing(folder: Path, cpus: int = 2, workers: int = 0, **settings: str) -> Iterator[Head]:
    """A head, and `workers` more nodes that join it, each of `cpus` cores and in a process group of its own, until the
    block ends; `settings` are variables for them.

    Each has a folder of its own. In one folder with another cluster's head, Ray tells a submitted job the address of
    the cluster that started last; two nodes of one cluster unpack a job's files under each other's feet.
    """
    gcs, dashboard, metrics, *agent = free_ports(5)  # all at once: a port that was let go is given out again
    places = contextlib.ExitStack()
    session = _apart(places)
    answers = Head(
        f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", f"http://127.0.0.1:{metrics}/metrics", Path(session)
    )
    own = ("--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
           "--include-dashboard=true")  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_node(folder / "head", [metrics, *agent], cpus, settings, f"--temp-dir={session}", *own))
        # The dashboard is there before the node is.
        _wait_for(lambda: len(nodes(answers.dashboard)) == 1, started[0], folder / "head")
        for i in range(workers):
            joined = (free_ports(3), cpus, settings, f"--temp-dir={_apart(places)}", f"--address={answers.address}")
            started.append(_node(folder / f"node-{i}", *joined))
            _wait_for(lambda: len(nodes(answers.dashboard)) == len(started), started[-1], folder / f"node-{i}")
        yield answers
    finally:
        _end(started)
        places.close()


def nodes(dashboard: str) -> list[str]:
    """The ids of the nodes that the cluster counts as alive."""
    request = urllib.request.Request(f"{dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            found = json.load(answer)["data"]["summary"]
    except (urllib.error.URLError, OSError):
        return []
    raylets = [one.get("raylet", {}) for one in found]
    return [one["nodeId"] for one in raylets if one.get("state") == "ALIVE"]


def python(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run to its end as a user does, from the repository."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=600, check=False
    )


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def _apart(places: contextlib.ExitStack) -> str:
    """A short path, because Ray's sockets lie below it and their names may have 107 bytes.

    What a process that ends with its node still writes there, while it is removed, is no mistake of a test.
    """
    return places.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True))


def _node(log: Path, ports: list[int], cpus: int, settings: dict[str, str], *own: str) -> "subprocess.Popen[bytes]":
    metrics, agent, grpc = ports
    command = [
        str(Path(sys.executable).parent / "ray"), "start", *own, "--block", f"--num-cpus={cpus}",
        "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={metrics}", "--object-store-memory=100000000",
    ]  # fmt: skip
    variables = environment(RAY_AUTH_TOKEN=TOKEN, **(PATIENT | settings))
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env=variables, start_new_session=True)


def _wait_for(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        if ready():
            return
        time.sleep(0.3)
    raise AssertionError(f"the cluster does not come up: {log.read_text()}")


def _end(started: "list[subprocess.Popen[bytes]]") -> None:
    for one in reversed(started):
        one.send_signal(signal.SIGTERM)  # --block stops the processes it started
    for one in reversed(started):
        try:
            one.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()
