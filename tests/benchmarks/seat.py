"""Where a contestant sits: it is told who it is, and answers a round at a time. `forks.py` makes the processes."""

import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from torch import Tensor

from tests.benchmarks.contestants import Contestant, Output, Round
from tests.benchmarks.work import Model, draw

_ME = Path("/proc/self")


@dataclass(frozen=True)
class Ready:
    """It has its weights and samples; `rest` is what it holds before its first round, in bytes."""

    digest: str
    samples: int
    rest: int
    precision: str


@dataclass(frozen=True)
class Measured:
    """One round: seconds of processor (all its threads) and of the clock, and the most memory it held, in bytes."""

    cpu: float
    wall: float
    peak: int


@dataclass(frozen=True)
class Answer:
    """What the last round made."""

    features: np.ndarray | None
    scores: np.ndarray | None
    stored: int | None


@dataclass(frozen=True)
class Failed:
    reason: str


def serve(connection: Connection) -> None:
    """Sit down, then answer "round" and "answer" until the other side hangs up. A failure is an answer too."""
    try:
        contestant, model, precision = connection.recv()
        round, ready = _sit(contestant, model, precision)
        connection.send(ready)
        output = Output()
        while True:
            if connection.recv() == "round":
                measured, output = _measure(round)
                connection.send(measured)
            else:
                connection.send(Answer(_plain(output.features), _plain(output.scores), output.stored))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc()
        connection.send(Failed(_reason(error)))


def _sit(contestant: Contestant, model: Model, precision: str) -> tuple[Round, Ready]:
    work = draw(model, contestant.task, precision)
    digest = work.digest()
    module = import_module(f"tests.benchmarks.{contestant.module}")
    round = getattr(module, contestant.build)(work, **contestant.settings)
    return round, Ready(digest, work.n, _memory("VmRSS"), precision)


def _measure(round: Round) -> tuple[Measured, Output]:
    (_ME / "clear_refs").write_text("5")  # the peak starts again from here (proc(5))
    cpu, wall = time.process_time(), time.perf_counter()
    output = round()
    measured = Measured(time.process_time() - cpu, time.perf_counter() - wall, _memory("VmHWM"))
    return measured, output


def _memory(what: str) -> int:
    lines = (_ME / "status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def _plain(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().double().numpy()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
