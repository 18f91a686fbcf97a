"""The contest: everybody sits down, plays one round unmeasured, then rounds in turn, one contestant at a time."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks import truth
from tests.benchmarks.agreement import spearman
from tests.benchmarks.contestants import Contestant
from tests.benchmarks.seat import Answer, Failed, Measured, Ready
from tests.benchmarks.work import ROOT, Model

Seat = Callable[[Contestant], tuple[Connection, Callable[[], None]]]
"""Where a contestant can be reached, and how to end it should it not answer."""

RIVALS = ROOT / "results/benchmarks/rivals-venv/bin/python"
PATIENCE = 300.0  # seconds for any one answer
SLOW = 6.0  # processor seconds of the unmeasured round from which one measured round is enough


@dataclass
class Standing:
    """All that is known of a contestant on a model; `failed` says why there is no more."""

    contestant: Contestant
    connection: Connection | None = None
    end: Callable[[], None] = lambda: None
    failed: str = ""
    ready: Ready | None = None
    first: Measured | None = None
    answer: Answer | None = None
    rounds: list[Measured] = field(default_factory=list)
    agreement: float | None = None

    def tell(self, what: Any) -> None:
        assert self.connection is not None, "who has no connection has failed"
        with suppress(BrokenPipeError, ConnectionResetError):  # its last word, why it left, is still to be heard
            self.connection.send(what)

    def hear(self, kind: type) -> Any:
        """Its answer; None, and `failed`, where it has none."""
        assert self.connection is not None, "who has no connection has failed"
        reason = "its process ended without a word"
        with suppress(EOFError, ConnectionResetError):
            if self.connection.poll(PATIENCE):
                answer = self.connection.recv()
                if isinstance(answer, kind):
                    return answer
                reason = answer.reason if isinstance(answer, Failed) else f"it answered with {answer!r}"
            else:
                reason = f"no answer within {PATIENCE:.0f} s"
                self.end()  # or it would go on beside the others
        self.leave(reason)
        return None

    def ask(self, what: Any, kind: type) -> Any:
        self.tell(what)
        return self.hear(kind)

    def leave(self, reason: str = "") -> None:
        self.failed = reason
        if self.connection is not None:
            self.connection.close()


@contextmanager
def seats(logs: Path) -> Iterator[Seat]:
    """Processes for contestants, forked from one process per environment; all of them end with the block."""
    logs.mkdir(parents=True, exist_ok=True)
    made: dict[Path, subprocess.Popen[str]] = {}
    with TemporaryDirectory() as folder, Listener(str(Path(folder) / "called"), "AF_UNIX") as listener:

        def sit(contestant: Contestant) -> tuple[Connection, Callable[[], None]]:
            python = RIVALS if contestant.rival else Path(sys.executable)
            if python not in made:
                made[python] = _environment(python, logs / ("rivals.log" if contestant.rival else "ours.log"))
            stdin = made[python].stdin
            assert stdin is not None
            print(listener.address, file=stdin, flush=True)
            connection = listener.accept()
            return connection, partial(os.kill, connection.recv(), signal.SIGKILL)

        try:
            yield sit
        finally:
            for process in made.values():
                os.killpg(process.pid, signal.SIGKILL)  # with whoever does not answer any more
                process.wait()


def _environment(python: Path, log: Path) -> subprocess.Popen[str]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "tests.benchmarks.forks"]
    with log.open("w") as file:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=file, cwd=ROOT, env=own, text=True,
                                start_new_session=True)  # fmt: skip


def hold(seat: Seat, model: Model, contestants: Sequence[Contestant], rounds: int) -> list[Standing]:
    """The contest on one model. Nobody is dropped: who fails stays in the list with the reason."""
    truths = _truths(seat, model, list(dict.fromkeys(one.task for one in contestants)))
    present = _seated(seat, contestants, model)
    for one in _playing(present):
        one.first = one.ask("round", Measured)
    for one in _playing(present):
        one.answer = one.ask("answer", Answer)
        if one.answer is not None:
            one.agreement = spearman(one.answer, truths[one.contestant.task])
    for number in range(rounds):
        for one in _playing(present):
            if number == 0 or (one.first is not None and one.first.cpu < SLOW):
                one.rounds += [measured] if (measured := one.ask("round", Measured)) else []
    for one in _playing(present):
        one.leave()
    _equal_work(present)
    return present


def _seated(seat: Seat, contestants: Sequence[Contestant], model: Model, precision: str = "float32") -> list[Standing]:
    """All of them get ready at the same time."""
    present = [_called(seat, one) for one in contestants]
    for one in _playing(present):
        one.tell((one.contestant, model, precision))
    for one in _playing(present):
        one.ready = one.hear(Ready)
    return present


def _called(seat: Seat, contestant: Contestant) -> Standing:
    if contestant.rival and not RIVALS.exists():
        place = RIVALS.parents[1].relative_to(ROOT)
        return Standing(contestant, failed=f"its environment is missing: make {place}/ready")
    return Standing(contestant, *seat(contestant))


def _truths(seat: Seat, model: Model, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Of each task the scores in float64; they are computed at the same time, for nobody measures them."""
    judges = _seated(seat, [truth.contestant(task) for task in tasks], model, "float64")
    for judge in _playing(judges):
        judge.tell("round")
    found = {}
    for judge in judges:
        heard = None if judge.failed else judge.hear(Measured)
        answer = judge.ask("answer", Answer) if heard else None
        if answer is None:
            raise RuntimeError(f"no float64 scores of {judge.contestant.task} on {model.name}: {judge.failed}")
        found[judge.contestant.task] = answer.scores
        judge.leave()
    return found


def _playing(present: list[Standing]) -> Iterator[Standing]:
    return (one for one in present if not one.failed)


def _equal_work(present: list[Standing]) -> None:
    """Within a task everybody had the same weights and the same samples."""
    for task in {one.contestant.task for one in present}:
        had = {(one.ready.digest, one.ready.samples) for one in present if one.ready and one.contestant.task == task}
        assert len(had) <= 1, f"contestants of {task} did not get the same work: {had}"
