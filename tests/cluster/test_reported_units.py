"""The driver's sum of what the workers of running items report, with workers that answer when the test says so."""

from concurrent.futures import Future

import pytest

from cluster.reported_units import PAUSE, PER_SECOND, ReportedUnits


class Actor:
    """Looks like Ray's handle of an actor, and keeps the questions that it got."""

    def __init__(self):
        self.questions = []

    @property
    def units(self):
        return self

    def options(self, concurrency_group):
        return self

    def remote(self):
        self.questions.append(Future())
        return self

    def future(self):
        return self.questions[-1]


@pytest.fixture
def reported():
    return ReportedUnits()


def test_the_total_is_that_of_the_calls_that_run(reported):
    first, second = Actor(), Actor()
    reported.ask(0.0, [(1, first), (2, second)])
    first.questions[0].set_result(3.0)
    second.questions[0].set_result(4.5)
    reported.ask(PAUSE, [(1, first), (2, second)])
    assert reported.total == 7.5
    first.questions[1].set_result(5.0)
    reported.ask(PAUSE, [])
    assert reported.total == 9.5, "a later answer replaces the one before"
    reported.forget(1)
    assert reported.total == 4.5
    reported.forget(2)
    reported.forget(3)
    assert reported.total == 0.0


def test_an_answer_about_a_call_that_has_ended_does_not_count(reported):
    actor = Actor()
    reported.ask(0.0, [(1, actor)])
    reported.forget(1)
    actor.questions[0].set_result(3.0)
    reported.ask(PAUSE, [])
    assert reported.total == 0.0


def test_who_hangs_or_is_dead_is_asked_no_second_time_and_stops_nobody(reported):
    silent, dead = Actor(), Actor()
    for turn in range(5):
        reported.ask(turn * PAUSE, [(1, silent), (2, dead)])
    assert (len(silent.questions), len(dead.questions)) == (1, 1)
    dead.questions[0].set_exception(RuntimeError("the actor died"))
    reported.ask(5 * PAUSE, [(1, silent)])
    assert reported.total == 0.0
    assert len(silent.questions) == 1


def test_many_workers_are_asked_less_often(reported):
    actors = [(call, Actor()) for call in range(10 * PER_SECOND)]
    for second in range(10):
        reported.ask(float(second), actors)
        for _, actor in actors:
            for question in actor.questions:
                if not question.done():
                    question.set_result(1.0)
    assert {len(actor.questions) for _, actor in actors} == {1}
    reported.ask(10.0, actors)
    assert {len(actor.questions) for _, actor in actors} == {2}
