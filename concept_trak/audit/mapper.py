"""How a pipeline spreads its work: a mapper runs one stage's tasks on workers and yields results as they finish.

Every stage follows one grammar: `XTask -> XWorker -> XResult`, a frozen record in, a class built once per process, a
frozen record out. The library has `serial`; the jobs wrap an executor on Ray in the same signature.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Attempt(Protocol):
    """The number of an attempt at a task, from 1, how often its batch was halved for lack of memory, and a report.

    `report` takes the number of samples that the worker has finished since its last report; a sample counts by the part
    of it that is finished. It only informs.
    """

    @property
    def number(self) -> int: ...
    @property
    def halvings(self) -> int: ...
    @property
    def report(self) -> Callable[[float], None]: ...


@dataclass(frozen=True)
class FirstAttempt:
    """The only attempt of a serial run."""

    number: int = 1
    halvings: int = 0

    @property
    def report(self) -> Callable[[float], None]:
        """Takes every report and drops it."""
        return lambda samples: None


class Task(ABC):
    """One unit of a stage's work: every XTask is a frozen dataclass with this base."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The task's name in the name of a log."""

    @property
    def samples(self) -> int:
        """Number of samples that the task computes, for the progress; 0 if it computes none."""
        return 0

    def __str__(self) -> str:
        return self.label


@runtime_checkable
class Mapper(Protocol):
    """Runs the tasks of one stage.

    Args of a call:
        stage: the stage's name, for progress and logs.
        worker: the XWorker class, importable by name on another machine; a worker is called with (task, attempt).
        settings: the argument of the XWorker's constructor.
        tasks: XTasks (`Task`).

    A call yields (task, result) as tasks finish, in any order. If tasks failed, it raises after the last task, so that
    the others are finished.
    """

    def __call__(
        self, stage: str, worker: type[Any], settings: Any, tasks: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]: ...


def serial(stage: str, worker: type[Any], settings: Any, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The mapper in this process: one worker, one task after the other, no second attempt; errors are raised as is."""
    if tasks:
        work = worker(settings)
        yield from ((task, work(task, FirstAttempt())) for task in tasks)


def in_order(tasks: Sequence[Any], pairs: Iterator[tuple[Any, Any]]) -> list[Any]:
    """The results in the order of their tasks, once all have finished."""
    results = {id(task): result for task, result in pairs}
    return [results[id(task)] for task in tasks]


class Stopped(RuntimeError):
    """A run ended early; finished work is kept. `exit_code`: 2 a mistake of the user, 3 rejects, 5 failed work."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
