"""The one verb of a cluster, `map`, and the words it is spoken in.

An executor builds one worker per place and calls it item by item. It knows nothing of what the items are: they and
the results are small records (a file name, a row range, a few counts), because whatever is large goes to storage. An
effect must be idempotent: a worker that was given up for dead may still be computing, so an item can be done twice.
"""

import hashlib
import math
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol


class UserError(ValueError):
    """What the user can mend: shown as one message without a traceback (exit code 2).

    Any other exception is a bug, also a `ValueError` of a library. It is known by its name, so that a class of the
    same name in a package that this one does not import counts too.
    """


class Failure(Enum):
    """What helps: waiting, a smaller batch, perhaps another attempt, or only the user."""

    INFRASTRUCTURE = "infrastructure"
    MEMORY = "memory"
    APPLICATION = "application"
    INPUT = "input"


@dataclass(frozen=True)
class Resources:
    """What one worker owns: CPU cores, GPUs (fractions allowed) and memory in bytes, 0 where not stated."""

    cpus: float = 1
    gpus: float = 0
    memory: int = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.memory) < 0 or not (self.cpus or self.gpus):
            raise UserError(f"{self}: a worker needs some CPU or GPU, and nothing below zero; set cpus=1 or more")


ONE_CPU = Resources()


@dataclass(frozen=True)
class Attempt:
    """Which attempt at an item this is.

    Attributes:
        number: from 1.
        halvings: how often running out of memory has halved the batch.
    """

    number: int
    halvings: int


Worker = Callable[[Any, Attempt], Any]


@dataclass(frozen=True)
class Task:
    """What workers do.

    Attributes:
        worker: a class or function of a module. `worker(config)` is called once per process, and what it returns is
            called with each item and its `Attempt`.
        config: a small record that can be pickled.

    Raises:
        TypeError: another process cannot import `worker`: it is a lambda, of a function's body, or of `__main__`,
            which in a worker's process is another program.
    """

    worker: Callable[[Any], Worker]
    config: object

    def __post_init__(self) -> None:
        module, name = getattr(self.worker, "__module__", ""), getattr(self.worker, "__qualname__", "")
        if module in ("", "__main__", "__mp_main__") or not name or imported(module, name) is not self.worker:
            raise TypeError(
                f"{self.worker!r} is not what another process imports as {name or '?'} of {module or '?'}; give a "
                "class or function that is defined at the top of a module"
            )

    @property
    def entry(self) -> str:
        """The worker's name, as it is sent to other processes: "module:qualname"."""
        return f"{self.worker.__module__}:{self.worker.__qualname__}"


def imported(module: str, qualname: str) -> Any:
    """The object of this name; None if the module has none."""
    return reduce(lambda parent, name: getattr(parent, name, None), qualname.split("."), import_module(module))


def package_of(entry: str) -> str:
    """The top-level package of "module:qualname"."""
    return entry.partition(":")[0].partition(".")[0]


@dataclass(frozen=True)
class Outcome:
    """The end of one item: its result, or its last failure.

    Attributes:
        item: what was given to the worker.
        result: what the worker returned; None if the item failed.
        failure: the class of the last failure; None if there is a result.
        message: the text of the last error.
        error: the traceback of the last error; None if there is a result.
        attempts: how many attempts there were.
        seconds: the length of the last attempt.
        host: the machine of the last attempt; "" where that is not known.
    """

    item: Any
    result: Any | None
    failure: Failure | None
    message: str
    error: str | None
    attempts: int
    seconds: float
    host: str


@dataclass(frozen=True)
class Budgets:
    """How often an item is tried again for each class of failure, and how many failures in a row mean "everywhere".

    `systemic` counts worker constructions that fail in a row, and items given up in a row without any item done.
    `lease` is how many seconds one attempt, or the construction of a worker, may take: a process that is over it hangs.
    It is killed and counted as a failure of infrastructure. Infinity waits for ever.
    """

    infrastructure: int = 10
    memory: int = 3
    application: int = 2
    systemic: int = 3
    lease: float = math.inf


@dataclass(frozen=True)
class Load:
    """What a map is at: items that run and items in its queue, workers by what they do, tries repeated so far.

    workers: how many are waiting (for room on a node), building, idle or working.
    retries: how often an item was put back since the map began, by the class of the failure.
    """

    running: int
    queued: int = 0
    workers: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)


Watch = Callable[[Load], None]


def unwatched(load: Load) -> None:
    """Nobody wants to know what the map is at."""


class Executor(Protocol):
    """Where the work is done. The stages do not know which one they run on."""

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        """Every item's outcome exactly once, in the order in which they end.

        `watch` is told, by the thread that iterates, what the map is at: whenever that may have changed, and again and
        again while the map waits for what runs elsewhere.

        An item whose own error is over its budget comes out with `error`, and the others go on. An item over its
        infrastructure budget does too, and the map ends with `InfrastructureExhausted`: after the last item, or at once
        if `Budgets.systemic` items in a row were given up.

        Raises:
            WorkerFailed: no worker can be built from `task`.
            InfrastructureExhausted: machines, processes or storage failed more often than the budget allows.
        """
        ...


class InfrastructureExhausted(RuntimeError):
    """Machines, processes or storage failed more often than `Budgets.infrastructure` allows."""

    exit_code = 4


class WorkerFailed(RuntimeError):
    """No worker could be built: exit code 2 with the message of a `UserError`, else 5 with the first traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StaleCode(UserError):
    """A worker would run other source code than the driver."""


def source_roots(package: str) -> list[Path]:
    """The files or folders `package` (a top-level name) would be imported from, found without importing it."""
    spec = find_spec(package)
    if spec is None:
        raise UserError(f"no package {package} on {socket.gethostname()}; start from the folder that contains it")
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    source = Path(str(spec.origin))
    assert source.suffix == ".py", f"{package} is not Python source: {spec.origin}"
    return [source]


def source_digest(package: str) -> str:
    """sha256 over the relative names and the bytes of all *.py files of `package` (a top-level name)."""
    digest = hashlib.sha256()
    for root in source_roots(package):
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root]
        for file in files:
            source = file.read_bytes()
            name = file.relative_to(root if root.is_dir() else root.parent).as_posix()
            # The lengths keep (name, bytes) apart: without them a byte could move from one to the other unseen.
            digest.update(f"{len(name)} {name} {len(source)} ".encode() + source)
    return digest.hexdigest()
