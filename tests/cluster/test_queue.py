"""The state machine against a fake pool and a fake clock, in every order hypothesis thinks of."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.executor import Budgets, Failure, InfrastructureExhausted, WorkerFailed
from cluster.queue import Constructions, Queue, backoff, item_name, overdue
from cluster.worker import Reply

BUDGETS = Budgets(infrastructure=3, memory=2, application=1, systemic=2)
RETRIES = {Failure.INFRASTRUCTURE: 3, Failure.MEMORY: 2, Failure.APPLICATION: 1, Failure.INPUT: 0}


def reply(failure=None):
    if failure is None:
        return Reply()
    return Reply(failure=failure, message=f"message of {failure.value}", trace=f"trace of {failure.value}")


@settings(deadline=None)
@given(count=st.integers(0, 6), size=st.integers(1, 4), data=st.data())
def test_every_item_ends_exactly_once_in_any_order_of_events(count, size, data):
    queue, now, leased, ended = Queue(range(count), BUDGETS), 0.0, [], []
    failures: dict[int, Counter[Failure]] = {index: Counter() for index in range(count)}
    while queue.unfinished:
        lease = queue.lease(now) if len(leased) < size else None
        if lease is not None:
            assert lease.index not in {other.index for other in leased}, "an item is leased twice at once"
            assert lease.attempt.number == 1 + failures[lease.index].total()
            assert lease.attempt.halvings == failures[lease.index][Failure.MEMORY]
            leased.append(lease)
        if not leased:
            assert math.isfinite(queue.ready_at), "nothing leased, nothing pending, and yet unfinished"
            now = max(now, queue.ready_at)
            continue
        if lease is not None and data.draw(st.booleans(), label="wait before the next reply"):
            continue
        settled = leased.pop(data.draw(st.integers(0, len(leased) - 1), label="which worker answers"))
        failure = data.draw(st.sampled_from([None, *Failure]), label="how")
        outcome = queue.settle(settled, reply(failure), now)
        if failure is not None:
            failures[settled.index][failure] += 1
        over = failure is not None and failures[settled.index][failure] > RETRIES[failure]
        assert (outcome is not None) == (failure is None or over), "a budget is not kept exactly"
        if outcome is not None:
            assert outcome.failure is failure
            assert outcome.message == ("" if failure is None else f"message of {failure.value}")
            assert outcome.error == (None if failure is None else f"trace of {failure.value}")
            ended.append(outcome.item)
    assert sorted(ended) == list(range(count)), "items were lost or ended twice"


def test_backoff_doubles_from_zero_to_half_a_minute():
    assert [backoff(times) for times in range(1, 10)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff(10**6) == 30


def test_infrastructure_waits_and_the_others_go_first():
    queue = Queue(["a", "b"], BUDGETS)
    first = queue.lease(0.0)
    queue.settle(first, reply(Failure.INFRASTRUCTURE), 5.0)
    assert queue.lease(5.0).item == "b", "an untried item goes before one that failed"
    second = queue.lease(5.0)
    queue.settle(second, reply(Failure.INFRASTRUCTURE), 5.0)
    assert queue.lease(5.9) is None, "the second failure waits one second"
    assert queue.ready_at == 6.0
    assert queue.lease(6.0).attempt.number == 3


def test_a_settled_lease_cannot_be_settled_again():
    queue = Queue(["a"], BUDGETS)
    lease = queue.lease(0.0)
    queue.settle(lease, reply(), 0.0)
    with pytest.raises(AssertionError, match="settled twice"):
        queue.settle(lease, reply(), 0.0)


def test_a_lease_ends_its_time_after_it_was_given():
    queue = Queue(["a", "b"], Budgets(lease=60.0))
    first, second = queue.lease(100.0), queue.lease(130.0)
    assert (first.until, second.until) == (160.0, 190.0)
    assert queue.leased == 2
    assert queue.settle(first, overdue(61.0, "node-7"), 161.0) is None, "it is tried again"
    assert queue.leased == 1
    again = queue.lease(161.0)
    assert (again.item, again.attempt.number, again.attempt.halvings, again.until) == ("a", 2, 0, 221.0)
    assert Queue(["a"], Budgets()).lease(1e9).until == math.inf, "without a budget nothing is ever over its time"
    assert Constructions(Budgets(lease=60.0), workers=1).until(100.0) == 160.0


def test_an_item_whose_workers_always_hang_ends_with_the_remedy_and_exit_code_4():
    queue, now = Queue(["a"], Budgets(infrastructure=2, lease=60.0)), 0.0
    while (outcome := queue.settle(lease := queue.lease(now), overdue(60.0, "node-7"), lease.until)) is None:
        now = max(lease.until, queue.ready_at)
    assert outcome.attempts == 3
    with pytest.raises(
        InfrastructureExhausted, match=r"on node-7 in 60 s, so it hangs .* raise budget.lease"
    ) as raised:
        queue.raise_if_exhausted()
    assert raised.value.exit_code == 4


def test_what_is_leased_is_counted():
    queue = Queue(range(3), BUDGETS)
    assert queue.leased == 0
    one, two = queue.lease(0.0), queue.lease(0.0)
    assert queue.leased == 2
    queue.settle(one, reply(), 0.0)
    queue.settle(two, reply(Failure.INFRASTRUCTURE), 0.0)
    assert (queue.leased, queue.unfinished) == (0, 2), "what is to be tried again is not running"


def exhaust(queue):
    """Give up one item: every attempt at it fails for reasons of infrastructure."""
    outcome, now = None, 0.0
    while outcome is None:
        now = max(now, queue.ready_at)
        outcome = queue.settle(queue.lease(now), reply(Failure.INFRASTRUCTURE), now)
    return outcome


def test_one_exhausted_item_is_reported_after_the_others():
    queue = Queue(range(2), Budgets(infrastructure=0, systemic=2))
    assert exhaust(queue).error == "trace of infrastructure"
    queue.raise_if_exhausted()
    queue.settle(queue.lease(0.0), reply(), 0.0)
    with pytest.raises(InfrastructureExhausted, match="1 of 2 items were given up") as raised:
        queue.raise_if_exhausted()
    assert raised.value.exit_code == 4


def test_item_after_item_given_up_ends_the_map_at_once():
    queue = Queue(range(9), Budgets(infrastructure=0, systemic=2))
    exhaust(queue)
    queue.settle(queue.lease(0.0), reply(), 0.0)
    exhaust(queue)
    queue.raise_if_exhausted()
    exhaust(queue)
    with pytest.raises(InfrastructureExhausted, match="5 were not finished") as raised:
        queue.raise_if_exhausted()
    assert "run the same command again" in str(raised.value)
    assert str(raised.value).endswith("at attempt 1 on a node: message of infrastructure"), (
        "a message, and no traceback"
    )


def test_constructions_fail_for_good_only_in_a_row():
    constructions = Constructions(Budgets(systemic=2), workers=2)
    broken = Reply(failure=Failure.APPLICATION, trace="first trace")
    constructions.failed(broken)
    constructions.succeeded()
    constructions.failed(broken)
    with pytest.raises(WorkerFailed, match="first trace") as raised:
        constructions.failed(Reply(failure=Failure.APPLICATION, trace="second trace"))
    assert raised.value.exit_code == 5


def test_constructions_lost_to_infrastructure_wait_and_have_that_budget():
    constructions = Constructions(Budgets(infrastructure=2), workers=2)
    lost = Reply(failure=Failure.INFRASTRUCTURE, message="node gone", trace="Traceback: node gone")
    assert [constructions.failed(lost) for _ in range(4)] == [0, 0, 1, 1], "the wait grows once per round of workers"
    with pytest.raises(InfrastructureExhausted, match=r"in 5 attempts; .* The last, on a node: node gone$"):
        constructions.failed(lost)


def test_the_users_mistake_ends_construction_at_once_in_its_own_words():
    with pytest.raises(WorkerFailed, match=r"^k must be even$") as raised:
        Constructions(Budgets(), workers=8).failed(Reply(failure=Failure.INPUT, message="k must be even"))
    assert raised.value.exit_code == 2


def test_an_item_is_named_by_its_text_and_not_at_length():
    assert item_name("shard 7") == "shard 7"
    assert item_name("x" * 101) == "x" * 100 + "..."
