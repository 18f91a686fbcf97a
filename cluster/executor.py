"""The contract of an executor: one verb, `map`, and the records that go in and come out.

An executor builds one worker per process and calls it with one item after the other. Items and results are small
records (a file name, a row range, a few counts); whatever is large goes to storage. Effects must be idempotent: a
worker that was given up for dead may still compute, so an item can be done twice.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from importlib import import_module
from typing import Any, Protocol


class UserError(ValueError):
    """A mistake of the user, shown as one message without a traceback (exit code 2).

    Any other exception is a bug, also a `ValueError` of a library. The class is recognized by its name, so that
    `concept_trak.UserError`, which this package does not import, counts too.
    """


class Failure(Enum):
    """The class of a failure, by its remedy: waiting, a smaller batch, perhaps another attempt, or only the user."""

    INFRASTRUCTURE = "infrastructure"
    MEMORY = "memory"
    APPLICATION = "application"
    INPUT = "input"


@dataclass(frozen=True)
class Resources:
    """What one worker owns.

    Attributes:
        cpus: cores, at least 0; fractions are allowed.
        gpus: at least 0; fractions are allowed. A worker owns some CPU or some GPU.
        memory: bytes; 0 reserves none.
    """

    cpus: float = 1
    gpus: float = 0
    memory: int = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.memory) < 0 or not (self.cpus or self.gpus):
            raise UserError(f"{self}: a worker needs some CPU or GPU, and nothing below zero; set cpus=1 or more")


ONE_CPU = Resources()


def unreported(units: float) -> None:
    """A report that goes nowhere."""


@dataclass(frozen=True)
class Attempt:
    """Which attempt at an item this is, and where its worker reports how far it is.

    Attributes:
        number: from 1.
        halvings: how often running out of memory has halved the batch.
        report: a worker may call it with the number of units of the item, such as samples, that it has finished since
            its last call; a unit counts by the part of it that is finished. It only informs a watch.
    """

    number: int
    halvings: int
    report: Callable[[float], None] = field(default=unreported, repr=False, compare=False)


Worker = Callable[[Any, Attempt], Any]


@dataclass(frozen=True)
class Task:
    """The class of the workers and their configuration.

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
        message: the text of the last error, or its class where it has none; "" if there is a result.
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
    """How often an item is tried again for each class of failure, and what ends a map.

    Attributes:
        infrastructure, memory, application: how often an item is tried again after a failure of this class.
        systemic: how many workers in a row that cannot be built, or how many items given up in a row, end the map.
        lease: seconds that one attempt, or the construction of a worker, may take. A process that takes longer hangs:
            it is killed, and that counts as a failure of infrastructure. Infinity waits for ever.
    """

    infrastructure: int = 10
    memory: int = 3
    application: int = 2
    systemic: int = 3
    lease: float = math.inf


@dataclass(frozen=True)
class Load:
    """The load of a map at one moment.

    Attributes:
        running: how many items workers have now.
        queued: how many items wait.
        workers: how many workers are pending (no node has room), building, idle or working.
        retries: how often items were put back since the map began, by the class of the failure.
        units: how many units of the running items their workers have reported as finished. On a cluster the number may
            be some seconds old.
    """

    running: int
    queued: int = 0
    workers: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    units: float = 0.0


Watch = Callable[[Load], None]


def unwatched(load: Load) -> None:
    """A watch that does nothing."""


class Executor(Protocol):
    """A place to run work. The caller's code is the same for every executor."""

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        """Every item's outcome exactly once, in the order in which they end.

        An item whose failures are over their budget comes out with its last `error`, and the others go on. If the
        failures were of infrastructure, the map then ends with `InfrastructureExhausted`: after the last item, or at
        once if `Budgets.systemic` items in a row were given up.

        Args:
            task: what the workers do.
            items: small records that can be pickled.
            resources: what one worker owns.
            watch: called with the present load by the thread that iterates, when that may have changed, and about once
                a second while the map waits.

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
