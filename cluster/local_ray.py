"""Ray on this machine for one run: started with the cores that this process may use, and watched while it is used."""

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
"""The essential processes by the connection that this process has to them."""


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """What SIGTERM does stays as it is while Ray is started, whose own handler would abort the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def start() -> None:
    """Start Ray on this machine, and connect to it."""
    # "local" and not None: RAY_ADDRESS must not turn a run on this machine into one somewhere else.
    ray.init(
        "local",
        num_cpus=usable_cpus(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        **QUIET,
    )
    _processes[connection()] = [p for p in psutil.Process().children() if p.name() in ESSENTIAL]


def connection() -> str:
    """The id of this process's connection to Ray."""
    return ray.get_runtime_context().get_worker_id()


def require_alive() -> None:
    """Check that the Ray which `start` started is alive; any other Ray is not checked.

    Raises:
        InfrastructureExhausted: it is dead. Waiting does not help, because no node will join it.
    """
    processes = _processes.get(connection(), [])
    ended = [process for process in processes if not _runs(process)]
    # Ray counts a node as dead that has not answered for long, though its process is there.
    if ended or (processes and not any(node["Alive"] for node in ray.nodes())):
        raise InfrastructureExhausted(
            "Ray on this machine has died and does not come back; what is done stays done. Run the same command again."
        )


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
