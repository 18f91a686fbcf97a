"""The queue of a server: one thread answers one question after another, because they share one model."""

import logging
import threading
import time
import traceback
from collections import OrderedDict
from dataclasses import dataclass

from concept_trak import UserError
from concept_trak.audit.questions import STEPS, Questions
from concept_trak.data.text import escaped, one_line
from concept_trak.store.secrets import redacted, without_secrets
from serving.archive import QuestionArchive
from serving.metrics import ServerMeter
from serving.question import Question

MOST_FAILURES = 256
"""Messages of questions that failed, which are kept in memory."""
FIRST_GUESS = 5.0
"""Seconds that a question takes, before one has been answered."""
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
        self._running, self._step, self._stopped, self._seconds = "", 0, False, FIRST_GUESS
        self._changed = threading.Condition()
        self.meter = ServerMeter(questions.config.audit, lambda: len(self._queued), lambda: bool(self._running))
        self._thread = threading.Thread(target=self._work, name="answering")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the question that is computed. Those that wait are queued again when their links are opened."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

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
            if key != self._running and key not in self._queued:
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
            if key == self._running:
                return Progress("running", step=self._step)
            if key in self._queued:
                return Progress("queued", ahead=list(self._queued).index(key) + bool(self._running))
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
        return self._thread.is_alive()

    def _work(self) -> None:
        while (key := self._next()) is not None:
            start, message = time.monotonic(), ""
            try:
                self._answer(*key)
            except UserError as error:
                message = str(error)
            except OSError as error:
                message = f"storage failed, ask again: {without_secrets(error) or type(error).__name__}"
                log.warning("question %s: %s", key[0], one_line(redacted(message)))
            except Exception:
                message = "the server has failed at this question; its log has the reason"
                log.error("question %s\n%s", key[0], redacted(traceback.format_exc()))
            self._end(key[0], escaped(redacted(message), "\n"), time.monotonic() - start)

    def _next(self) -> tuple[str, Question] | None:
        """The question that has waited longest; None once the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._queued)
            if self._stopped:
                return None
            key, question = self._queued.popitem(last=False)
            self._running, self._step = key, 0
        return key, question

    def _answer(self, key: str, question: Question) -> None:
        concept, top = question.concept(self.archive.pictures), question.top
        answer = self.questions.ask([concept], question.method, top, pictured=top, progress=self._set_step)
        self.archive.keep_answer(key, answer)

    def _set_step(self, step: str) -> None:
        self._step = STEPS.index(step) + 1

    def _end(self, key: str, message: str, seconds: float) -> None:
        self.meter.add_question(bool(message), seconds)
        with self._changed:
            self._running, self._seconds = "", seconds
            if message:
                self._failed[key] = message
            while len(self._failed) > MOST_FAILURES:
                self._failed.popitem(last=False)
