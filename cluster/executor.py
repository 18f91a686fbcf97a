"""The interface of an executor: its one method `map`, and the records that `map` takes and returns.

An executor builds one worker in each process and calls it with one item after the other. Items and results are small
records (a file name, a row range, a few counts); workers write large data to storage. An item can be done twice,
because a worker that seems dead may still compute. So the effects of a worker must be idempotent.
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

    Any other exception is a bug, also a `ValueError` of a library. The class is recognized by its name, because this
    package does not import `concept_trak.UserError`.
    """


class Failure(Enum):
    """The class of a failure, by its remedy.

    INFRASTRUCTURE: wait and try again. MEMORY: try again with half the batch. APPLICATION: another attempt may help.
    INPUT: only the user can help.
    """

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
    """The default of `Attempt.report`: it does nothing."""


@dataclass(frozen=True)
class Attempt:
    """The number of an attempt at an item, and how its worker reports progress.

    Attributes:
        number: from 1.
        halvings: how often running out of memory has halved the batch.
        report: a worker may call it with the number of units of the item (such as samples) that it has finished since
            its last call; fractions count. Only a `Watch` sees these numbers.
    """

    number: int
    halvings: int
    report: Callable[[float], None] = field(default=unreported, repr=False, compare=False)


Worker = Callable[[Any, Attempt], Any]


@dataclass(frozen=True)
class Task:
    """The class of the workers and their configuration.

    Attributes:
        worker: a class or function of a module. `worker(config)` runs once in each process; the object that it
            returns is called with each item and its `Attempt`.
        config: a small record that can be pickled.

    Raises:
        TypeError: another process cannot import `worker`, because it is a lambda, is defined inside a function, or
            belongs to `__main__`, which is another program in a worker's process.
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
        host: the machine of the last attempt; "" if it is unknown.
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
    """How often an item is tried again for each class of failure, and when a map gives up.

    Attributes:
        infrastructure, memory, application: how often an item is tried again after a failure of this class.
        systemic: the map ends after this many workers in a row that cannot be built, or items in a row that are given
            up.
        lease: seconds that one attempt, or the construction of a worker, may take. A process that takes longer is
            killed, which counts as a failure of infrastructure. Infinity sets no limit.
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
        workers: how many workers are pending (no node has room), building, idle or working, by that word.
        retries: how often items were put back since the map began, by the class of the failure.
        units: how many units of the running items are finished, as their workers report. On a cluster the number may
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
        """Yield the outcome of every item exactly once, in the order in which the items end.

        An item is given up when its failures exceed their budget: its outcome has the last error, and the other items
        go on. If items were given up because of infrastructure, the map raises `InfrastructureExhausted` after the last
        item, or at once after `Budgets.systemic` of them in a row.

        Args:
            task: what the workers do.
            items: small records that can be pickled.
            resources: what one worker owns.
            watch: called with the load when it may have changed, and about once a second while the map waits. The
                thread that iterates calls it.

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
