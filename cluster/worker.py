"""The process of a worker: it builds the worker, calls it, and turns an exception into a small record.

An exception is classified where it is raised and sent as text, so the driver does not have to import or unpickle its
class.
"""

import gc
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cluster.executor import Attempt, Failure, Task, Worker, imported, package_of
from cluster.sealed import open_sealed
from cluster.source import require_same_source, source_digest, source_location


@dataclass(frozen=True)
class Reply:
    """The result or the failure of one call.

    Attributes:
        result: the returned value.
        failure: the class of the error; None if there was none.
        message: the error's text.
        trace: the error's traceback.
        seconds: how long the call took.
        host: the machine it ran on.
        lost: whether the process cannot be used again.
    """

    result: Any | None = None
    failure: Failure | None = None
    message: str = ""
    trace: str = ""
    seconds: float = 0.0
    host: str = ""
    lost: bool = False


# Clients of storage and hubs; not all their errors are OSErrors. They are named, so that none has to be imported.
NETWORK_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "gcsfs", "httpcore", "httpx", "urllib3"})
MACHINES = (Failure.INFRASTRUCTURE, Failure.MEMORY)
# OSErrors of the application: waiting does not make a missing file appear.
LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def classify(error: BaseException) -> Failure:
    """The class of an error. An error of the application gets the class of its causes if one is due to the machines.

    A `UserError` among the causes does not count: code that raised another error from it chose another message.
    """
    failure, cause = _own_class(error), error.__cause__
    while failure is Failure.APPLICATION and cause is not None:
        own, cause = _own_class(cause), cause.__cause__
        failure = own if own in MACHINES else failure
    return failure


def _own_class(error: BaseException) -> Failure:
    names = {cls.__name__ for cls in type(error).__mro__}
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    # PyTorch's CPU allocator raises a plain RuntimeError, which only its text distinguishes.
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names or refused:
        return Failure.MEMORY
    if "UserError" in names:
        return Failure.INPUT
    if isinstance(error, LASTING):
        return Failure.APPLICATION
    if isinstance(error, OSError) or accelerator_lost(error) or packages & NETWORK_CLIENTS:
        return Failure.INFRASTRUCTURE
    return Failure.APPLICATION


def accelerator_lost(error: BaseException) -> bool:
    """Whether it is PyTorch's AcceleratorError, after which every call on the device fails until the process ends."""
    return any(cls.__name__ == "AcceleratorError" for cls in type(error).__mro__)


def answer(call: Callable[[], Any]) -> Reply:
    """Call, and return the result or the exception as a reply."""
    start, host = time.monotonic(), socket.gethostname()
    try:
        return Reply(call(), seconds=time.monotonic() - start, host=host)
    except Exception as error:
        return Reply(
            failure=classify(error),
            message=str(error) or type(error).__name__,
            trace=traceback.format_exc(),
            seconds=time.monotonic() - start,
            host=host,
            lost=accelerator_lost(error),
        )


def blueprint(task: Task) -> tuple[str, bytes, str, str]:
    """The arguments of `build_worker` in another process."""
    package = package_of(task.entry)
    return task.entry, pickle.dumps(task.config), source_location(package), source_digest(package)


def build_worker(entry: str, config: bytes, location: str, digest: str) -> Worker:
    """The worker of a task.

    Args:
        entry: its name, "module:qualname".
        config: its configuration, pickled, because its class may be imported only after the sources are compared.
        location: where the driver imports the worker's package from.
        digest: the driver's `source_digest` of this package.
    """
    require_same_source(package_of(entry), location, digest)
    module, _, name = entry.partition(":")
    return imported(module, name)(pickle.loads(config))


class WorkerActor:
    """An actor of Ray, which is a process with one worker. Its methods raise nothing and, except `units`, return a
    `Reply`."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._units = 0.0

    def ready(self) -> Reply:
        """Return as soon as the process runs: the driver distinguishes a wait for a node from a slow build by this."""
        return Reply(host=socket.gethostname())

    def build(self, *blueprint: Any) -> Reply:
        """Build the worker; the arguments are those of `build_worker`."""
        return answer(partial(self._build, *blueprint))

    def _build(self, *blueprint: Any) -> None:
        open_sealed()
        self._worker = None  # frees the worker of the map before: two models may not fit into memory
        gc.collect()
        self._worker = build_worker(*blueprint)

    def work(self, item: Any, attempt: Attempt) -> Reply:
        """One attempt at one item."""
        assert self._worker is not None, "work before build"
        try:
            return answer(partial(self._worker, item, replace(attempt, report=self._report)))
        finally:
            self._units = 0.0

    def units(self) -> float:
        """The number of units of the present item that are finished. Another thread may call this during `work`."""
        return self._units

    def _report(self, finished: float) -> None:
        self._units += finished
