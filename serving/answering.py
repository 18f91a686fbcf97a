"""The queue of a server. One thread computes queries, one after another, because they share one model. A second one
ranks the samples for all questions whose queries are ready, in one pass over the features."""

import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from concept_trak import UserError
from concept_trak.audit.questions import STEPS, Questions
from concept_trak.audit.results import Tally
from concept_trak.audit.shared_pass import SolvedQuestion
from concept_trak.data.text import escaped, one_line
from concept_trak.store.secrets import redacted, without_secrets
from serving.archive import QuestionArchive
from serving.metrics import ServerMeter
from serving.question import Question

MOST_FAILURES = 256
"""Messages of questions that failed, which are kept in memory."""
FIRST_GUESS = 5.0
"""Seconds that a question takes, before one has been answered."""
BATCH = 16
"""Questions that share a pass over the features; so many may be ready for it."""
log = logging.getLogger(__name__)


class QueueFull(Exception):
    """So many questions wait that no other is taken.

    Attributes:
        seconds: after which a new try is likely to succeed.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many questions wait; ask again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Progress:
    """How far a question is."""

    state: str
    """queued, running, done or failed."""
    step: int = 0
    """running: how many of `STEPS` have begun."""
    ahead: int = 0
    """queued: how many questions are answered before it."""
    error: str = ""
    """failed: why."""


@dataclass(frozen=True, eq=False)
class ReadyQuestion:
    """A question that waits for a pass over the features, and how many seconds its queries took."""

    key: str
    question: Question
    solved: SolvedQuestion
    seconds: float

    def shares_pass(self, other: "ReadyQuestion") -> bool:
        """Whether both want the same ends of the same features."""
        return (self.question.method, self.question.top) == (other.question.method, other.question.top)


class Answering:
    """Answers questions in their order, and keeps every answer before it is reported as done.

    Args:
        questions: the audit and its model.
        archive: where questions and answers are kept.
        most: the length of the queue.
    """

    def __init__(self, questions: Questions, archive: QuestionArchive, most: int) -> None:
        self.questions, self.archive, self.most = questions, archive, most
        self._queued, self._failed = OrderedDict[str, Question](), OrderedDict[str, str]()
        self._running, self._ready = dict[str, int](), list[ReadyQuestion]()
        self._stopped, self._is_solved, self._seconds = False, False, FIRST_GUESS
        self._changed = threading.Condition()
        self.meter = ServerMeter(questions.config.audit, lambda: len(self._queued), lambda: len(self._running))
        self._threads = [threading.Thread(target=self._solve, name="queries"),
                         threading.Thread(target=self._rank, name="ranking")]  # fmt: skip

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the questions that are computed. Those that wait are queued again when their links are opened."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def submit(self, question: Question) -> str:
        """Queue a question, unless it is answered or queued already; returns its id.

        Raises:
            UserError: the audit cannot be asked this; found before the question waits for the model.
            QueueFull: too many questions wait.
            OSError: the folder of the questions cannot be written.
        """
        question = question.by(tuple(self.questions.config.methods))
        self.questions.configuration([question.concept(self.archive.pictures)], question.method, question.top, 0)
        self.archive.require_pictures(question)
        key = question.id(self.archive.settings)
        if self.archive.is_answered(key):
            return key
        self.require_space(key)
        self.archive.keep_question(question)
        with self._changed:
            self.require_space(key)
            if key not in self._running and key not in self._queued:
                self._failed.pop(key, None)
                self._queued[key] = question
                self._changed.notify_all()
        return key

    def require_space(self, key: str = "") -> None:
        """Check that a question can be queued.

        Raises:
            QueueFull: it cannot.
        """
        if len(self._queued) >= self.most and key not in self._queued:
            raise QueueFull(max(1, round(self._seconds * len(self._queued))))

    def progress(self, key: str) -> Progress | None:
        """How far a question is; None if nobody has asked it. One that a stopped server left is queued again.

        Raises:
            QueueFull: it was left, and too many questions wait.
        """
        with self._changed:
            if key in self._running:
                return Progress("running", step=self._running[key])
            if key in self._queued:
                return Progress("queued", ahead=list(self._queued).index(key) + len(self._running))
            if key in self._failed:
                return Progress("failed", error=self._failed[key])
        if self.archive.is_answered(key):
            return Progress("done")
        if (question := self.archive.question(key)) is None:
            return None
        self.submit(question)
        return Progress("queued", ahead=len(self._queued))

    @property
    def is_alive(self) -> bool:
        """Whether questions are taken and answered."""
        return all(thread.is_alive() for thread in self._threads)

    def _solve(self) -> None:
        """The thread with the model."""
        try:
            while (entry := self._next()) is not None:
                self._solve_question(*entry)
        finally:
            with self._changed:
                self._is_solved = True
                self._changed.notify_all()

    def _next(self) -> tuple[str, Question] | None:
        """The question that has waited longest; None once the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or (self._queued and len(self._ready) < BATCH))
            if self._stopped:
                return None
            key, question = self._queued.popitem(last=False)
            self._running[key] = 0
        return key, question

    def _solve_question(self, key: str, question: Question) -> None:
        start = time.monotonic()
        try:
            concept, top = question.concept(self.archive.pictures), question.top
            config = self.questions.configuration([concept], question.method, top, pictured=top)
            solved = self.questions.solve_question(config, partial(self._set_step, [key]))
        except Exception as error:
            self._end(key, _failure(key, error), time.monotonic() - start)
            return
        with self._changed:
            self._ready.append(ReadyQuestion(key, question, solved, time.monotonic() - start))
            self._changed.notify_all()

    def _rank(self) -> None:
        """The thread with the features."""
        while batch := self._next_batch():
            self._rank_batch(batch)

    def _next_batch(self) -> list[ReadyQuestion]:
        """The question that has been ready longest and those that share its pass; none once no other will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_solved)
            batch = [ready for ready in self._ready if ready.shares_pass(self._ready[0])][:BATCH]
            self._ready = [ready for ready in self._ready if ready not in batch]
            self._changed.notify_all()
        return batch

    def _rank_batch(self, batch: Sequence[ReadyQuestion]) -> None:
        start, progress = time.monotonic(), partial(self._set_step, [ready.key for ready in batch])
        try:
            tallies = self.questions.rank([ready.solved for ready in batch], progress)
        except Exception as error:
            if isinstance(error, UserError) and len(batch) > 1:  # of one of them, which must not fail the others
                for ready in batch:
                    self._rank_batch([ready])
                return
            for ready in batch:
                self._end(ready.key, _failure(ready.key, error), ready.seconds)
            return
        seconds = (time.monotonic() - start) / len(batch)
        for ready, tally in zip(batch, tallies, strict=True):
            self._finish(ready, tally, ready.seconds + seconds)

    def _finish(self, ready: ReadyQuestion, tally: Tally, seconds: float) -> None:
        start, message = time.monotonic(), ""
        try:
            answer = self.questions.answer(ready.solved, tally, partial(self._set_step, [ready.key]))
            self.archive.keep_answer(ready.key, answer)
        except Exception as error:
            message = _failure(ready.key, error)
        self._end(ready.key, message, seconds + time.monotonic() - start)

    def _set_step(self, keys: Sequence[str], step: str) -> None:
        with self._changed:
            self._running |= dict.fromkeys(keys, STEPS.index(step) + 1)

    def _end(self, key: str, message: str, seconds: float) -> None:
        self.meter.add_question(bool(message), seconds)
        with self._changed:
            del self._running[key]
            self._seconds = seconds
            if message:
                self._failed[key] = message
            while len(self._failed) > MOST_FAILURES:
                self._failed.popitem(last=False)


def _failure(key: str, error: Exception) -> str:
    """What the user reads about a failure. Its reason is logged, unless the user can mend it."""
    message = "the server has failed at this question; its log has the reason"
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError):
        message = f"storage failed, ask again: {without_secrets(error) or type(error).__name__}"
        log.warning("question %s: %s", key, one_line(redacted(message)))
    else:
        log.error("question %s\n%s", key, redacted("".join(traceback.format_exception(error))))
    return escaped(redacted(message), "\n")
