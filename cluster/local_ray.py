"""Ray on this machine for one run: starts it with the cores that this process may use, and checks that it is alive."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import ray

from cluster.executor import InfrastructureExhausted
from cluster.resources import usable_cpus

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
# Only small records pass through the object store, so a local cluster gives it little memory.
OBJECT_STORE_BYTES = 100 * 2**20
ESSENTIAL = ("gcs_server", "raylet")  # the processes without which a node of Ray is dead
_processes: dict[str, list[psutil.Process]] = {}
"""The essential processes of each Ray that `start` has started, by the id of the connection."""


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts; Ray would set its own, which aborts the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def start() -> None:
    """Start Ray on this machine, and connect to it."""
    # With None, the variable RAY_ADDRESS could send the run to another machine.
    ray.init(
        "local",
        num_cpus=usable_cpus(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **QUIET,
    )
    _processes[connection()] = [p for p in psutil.Process().children() if p.name() in ESSENTIAL]


def connection() -> str:
    """The id of this process's connection to Ray: of the node, because the first job of every cluster has the same id
    and so has its driver."""
    context = ray.get_runtime_context()
    return f"{context.get_node_id()} {context.get_worker_id()}"


def require_alive() -> None:
    """Check that the Ray which `start` started is alive; any other Ray is not checked.

    Raises:
        InfrastructureExhausted: it is dead, and no other node will join.
    """
    processes = _processes.get(connection(), [])
    ended = [process for process in processes if not _runs(process)]
    # Ray also counts a node as dead if its process exists but has not answered for long.
    if ended or (processes and not any(node["Alive"] for node in ray.nodes())):
        raise InfrastructureExhausted(
            "Ray on this machine has died and does not come back; what is done stays done. Run the same command again."
        )


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
