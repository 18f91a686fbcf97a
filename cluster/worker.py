"""What happens on a worker: build it, call it, and turn whatever it raises into a small record.

Exceptions do not travel between machines here. They are classified where they are raised, with the real object at
hand, and leave as text: an exception class the driver cannot import or unpickle is then no second failure.
"""

import gc
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from cluster.executor import Attempt, Failure, StaleCode, Worker, imported, package_of, source_digest, source_roots


@dataclass(frozen=True)
class Reply:
    """What one call came to: `result`, or `failure` with the error's own words and its traceback.

    `lost` says that the process cannot be used again, whether it answered or not.
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
    # PyTorch's CPU allocator raises a bare RuntimeError, told apart by its words alone.
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
            message=str(error),
            trace=traceback.format_exc(),
            seconds=time.monotonic() - start,
            host=host,
            lost=accelerator_lost(error),
        )


def agree_on_source(package: str, location: str, digest: str) -> None:
    """Compare the source a worker would import with the driver's, before anything of it is imported.

    Raises:
        StaleCode: they differ, naming both places.
    """
    own = source_digest(package)
    if own != digest:
        raise StaleCode(
            f"worker on {socket.gethostname()} would run {package} from {where(package)} (sha256 {own[:12]}), "
            f"the driver runs {location} (sha256 {digest[:12]}): remove the installed copy or start from the same "
            "working directory"
        )


def where(package: str) -> str:
    """The place `package` is imported from, as text for a message."""
    return ", ".join(str(root) for root in source_roots(package))


class Place:
    """A process that holds one worker, driven from elsewhere: its methods answer with a `Reply` and do not raise."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def arrive(self) -> Reply:
        """Answers as soon as the process runs, so that waiting for room is told from a slow construction."""
        return Reply(host=socket.gethostname())

    def build(self, entry: str, config: bytes, location: str, digest: str) -> Reply:
        """Build the worker. `config` comes pickled: its class is imported only after the sources were compared."""
        return answer(partial(self._build, entry, config, location, digest))

    def _build(self, entry: str, config: bytes, location: str, digest: str) -> None:
        agree_on_source(package_of(entry), location, digest)
        self._worker = None  # of the map before: two models may not fit
        gc.collect()
        module, _, name = entry.partition(":")
        self._worker = imported(module, name)(pickle.loads(config))

    def work(self, item: Any, attempt: Attempt) -> Reply:
        """One attempt at one item."""
        assert self._worker is not None, "work before build"
        return answer(partial(self._worker, item, attempt))
