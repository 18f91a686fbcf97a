"""The two threads of the queue: which questions share a pass over the features, and what one that fails does there."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from concept_trak import UserError
from serving.answering import BATCH, Answering
from serving.question import Question
from tests.serving.stand_in import Stand, answering

PATIENCE = 20.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Callable[..., Answering]]:
    """Starts a queue, whose first pass over the features waits until `ranked` is set."""
    queues = list[Answering]()

    def start(questions: Stand) -> Answering:
        questions.ranked.clear()
        queues.append(answering(str(tmp_path), questions, 100))
        queues[-1].start()
        return queues[-1]

    yield start
    for started in queues:
        started.questions.ranked.set()  # pyright: ignore[reportAttributeAccessIssue]  (of the stand-in)
        started.stop()


def ask_together(own: Answering, questions: Stand, *together: Question) -> list[str]:
    """Ask questions that are all ready when the first pass, which has another one, ends."""
    own.submit(Question(prompt="first"))
    until(lambda: questions.batches == [1])
    keys = [own.submit(question) for question in together]
    # The queries of one are begun after those of the one before it are ready.
    own.submit(last := Question(prompt="last", top=2))
    until(lambda: last.prompt in {concept.prompt for concept in questions.asked})
    questions.ranked.set()
    until(lambda: all(own.progress(key).state in ("done", "failed") for key in keys))  # pyright: ignore[reportOptionalMemberAccess]
    return keys


def test_questions_with_equal_methods_and_top_share_a_pass(queue):
    questions = Stand()
    own = queue(questions)
    alike = [Question(prompt=str(i)) for i in range(3)]
    keys = ask_together(own, questions, alike[0], Question(prompt="more", top=3), *alike[1:])
    assert questions.batches[:3] == [1, 3, 1]
    assert len(set(keys)) == 4
    assert all(own.archive.is_answered(key) for key in keys)


def test_what_is_wrong_with_one_question_fails_no_other(queue):
    questions = Stand()
    questions.fails_at["1"] = UserError("its scores are too large")
    own = queue(questions)
    keys = ask_together(own, questions, *(Question(prompt=str(i)) for i in range(3)))
    assert questions.batches[:5] == [1, 3, 1, 1, 1]
    states = [own.progress(key) for key in keys]
    assert [(p.state, p.error) for p in states if p] == [
        ("done", ""),
        ("failed", "its scores are too large"),
        ("done", ""),
    ]


def test_storage_that_fails_fails_all_of_a_pass_with_a_message(queue):
    questions = Stand()
    questions.fails_at["1"] = OSError("s3: down")
    own = queue(questions)
    keys = ask_together(own, questions, *(Question(prompt=str(i)) for i in range(2)))
    for key in keys:
        progress = own.progress(key)
        assert progress
        assert (progress.state, progress.error) == ("failed", "storage failed, ask again: s3: down")


def test_no_more_queries_are_computed_than_a_pass_takes(queue):
    """So memory stays flat, however slow the store is."""
    questions = Stand()
    own = queue(questions)
    own.submit(Question(prompt="first"))
    until(lambda: questions.batches == [1])
    keys = [own.submit(Question(prompt=str(i))) for i in range(BATCH + 5)]
    until(lambda: len(questions.asked) == BATCH + 1)
    assert sum(p.state == "queued" for key in keys if (p := own.progress(key))) == 5
    questions.ranked.set()
    until(lambda: all(own.archive.is_answered(key) for key in keys))
    assert questions.batches[1] == BATCH
