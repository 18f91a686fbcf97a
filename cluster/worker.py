"""What happens in a worker's process: build the worker, call it, and turn what it raises into a small record.

Exceptions do not travel between machines here. They are classified where they are raised, with the object at hand, and
are sent as text: the driver then needs neither to import nor to unpickle the exception's class.
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

from cluster.executor import Attempt, Failure, Worker, imported, package_of
from cluster.sealed import open_sealed
from cluster.source import require_same_source


@dataclass(frozen=True)
class Reply:
    """The end of one call.

    Attributes:
        result: what it returned.
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


# Clients of storage and hubs whose errors do not all derive from OSError; named by package, so none is imported here.
NETWORK_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "gcsfs", "httpcore", "httpx", "urllib3"})
MACHINES = (Failure.INFRASTRUCTURE, Failure.MEMORY)
# Waiting does not bring a missing file: these OSErrors are the application's.
LASTING = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def classify(error: BaseException) -> Failure:
    """The class of an error: its own, else that of the first of its causes which is due to the machines.

    A `UserError` counts only as the error itself: code that raises another error from it gives another message.
    """
    failure, cause = _own_class(error), error.__cause__
    while failure is Failure.APPLICATION and cause is not None:
        own, cause = _own_class(cause), cause.__cause__
        failure = own if own in MACHINES else failure
    return failure


def _own_class(error: BaseException) -> Failure:
    names = {cls.__name__ for cls in type(error).__mro__}
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    # PyTorch's CPU allocator raises a bare RuntimeError, which has no other mark than its text.
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
    """The reply of one call, whatever it raises."""
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


class WorkerActor:
    """A process that holds one worker, as an actor of Ray. Its methods raise nothing, and all but `units` return a
    `Reply`."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._units = 0.0

    def ready(self) -> Reply:
        """Returns as soon as the process runs, so that the driver can tell a wait for a node from a slow build."""
        return Reply(host=socket.gethostname())

    def build(self, entry: str, config: bytes, location: str, digest: str) -> Reply:
        """Build the worker.

        Args:
            entry: its name, "module:qualname".
            config: its configuration, pickled: the class is imported only after the sources were compared.
            location: where the driver imports the worker's package from.
            digest: the `source_digest` of that.
        """
        return answer(partial(self._build, entry, config, location, digest))

    def _build(self, entry: str, config: bytes, location: str, digest: str) -> None:
        open_sealed()
        require_same_source(package_of(entry), location, digest)
        self._worker = None  # that of the map before: two models may not fit into memory
        gc.collect()
        module, _, name = entry.partition(":")
        self._worker = imported(module, name)(pickle.loads(config))

    def work(self, item: Any, attempt: Attempt) -> Reply:
        """One attempt at one item."""
        assert self._worker is not None, "work before build"
        try:
            return answer(partial(self._worker, item, replace(attempt, report=self._report)))
        finally:
            self._units = 0.0

    def units(self) -> float:
        """How many units of its present item the worker has finished. Another thread may call this during `work`."""
        return self._units

    def _report(self, finished: float) -> None:
        self._units += finished
