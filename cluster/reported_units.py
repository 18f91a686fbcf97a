"""How far the running items are: the driver asks their workers now and then, and waits for no answer."""

import math
from collections.abc import Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

GROUP = "units"
"""The concurrency group of an actor that answers while its worker works."""
PAUSE, PER_SECOND = 1.0, 100  # the least seconds between two rounds of questions; questions a second, on average


class ReportedUnits:
    """The units that workers of running calls have reported.

    A call has at most one question that is not answered yet, so this holds a few numbers for each worker. A worker that
    hangs, or whose process has died, answers nothing, and the last known number is used.

    Attributes:
        total: the sum over the running calls.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._of_call: dict[int, float] = {}
        self._questions: dict[int, Any] = {}  # Ray's references, by call
        self._answers: SimpleQueue[tuple[int, Future[float]]] = SimpleQueue()
        self._ask_at = -math.inf

    def ask(self, now: float, actors: Iterable[tuple[int, Any]]) -> None:
        """Take the answers that have come, and from time to time ask again.

        Args:
            now: seconds of any clock that does not go back.
            actors: of each call that works on an item, its number and Ray's handle.
        """
        while not self._answers.empty():
            self._take(*self._answers.get())
        if now < self._ask_at:
            return
        calls = dict(actors)
        for call in calls.keys() - self._questions.keys():
            self._ask(call, calls[call])
        self._ask_at = now + max(PAUSE, len(calls) / PER_SECOND)

    def forget(self, call: int) -> None:
        """A call has ended: its units are those of a finished item, or are lost."""
        self.total -= self._of_call.pop(call, 0.0)
        self._questions.pop(call, None)

    def _ask(self, call: int, actor: Any) -> None:
        self._questions[call] = question = actor.units.options(concurrency_group=GROUP).remote()
        question.future().add_done_callback(lambda answer: self._answers.put((call, answer)))

    def _take(self, call: int, answer: "Future[float]") -> None:
        is_pending = self._questions.pop(call, None) is not None
        if is_pending and answer.exception() is None:
            self.total += answer.result() - self._of_call.get(call, 0.0)
            self._of_call[call] = answer.result()
