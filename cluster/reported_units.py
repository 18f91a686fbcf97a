"""The progress of running items: the driver asks their workers from time to time, and does not wait for answers."""

import math
from collections.abc import Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

GROUP = "units"
"""The concurrency group of an actor that answers while its worker works."""
PAUSE = 1.0  # the least seconds between two rounds of questions
PER_SECOND = 100  # the most questions a second, on average


class ReportedUnits:
    """The units that workers of running calls have reported.

    A call has at most one open question, so this object has a few numbers for each worker. If a worker hangs, or its
    process has died, its last number stays.

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
        """Take the answers that have arrived, and ask again if it is time.

        Args:
            now: seconds of any clock that does not go back.
            actors: (number of the call, Ray's handle of the actor) for each call that works on an item.
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
        """Drop the units of a call that has ended."""
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
