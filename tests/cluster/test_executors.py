"""One contract, both executors: the same items end the same way in this process and on a real Ray."""

import subprocess
import sys

import pytest
import workers
from workers import Settings

from cluster.executor import Budgets, Failure, InfrastructureExhausted, Task, WorkerFailed

MOODY = Task(workers.Moody, None)


def by_item(outcomes):
    ended = {}
    for outcome in outcomes:
        assert outcome.item not in ended, f"{outcome.item} came out twice"
        ended[outcome.item] = outcome
    return ended


def test_every_item_comes_out_once_with_its_result(make_executor):
    ended = by_item(make_executor().map(Task(workers.Square, None), range(20)))
    assert {item: outcome.result for item, outcome in ended.items()} == {item: item**2 for item in range(20)}
    assert all(outcome.error is None and outcome.attempts == 1 and outcome.host for outcome in ended.values())


def test_who_watches_hears_how_many_items_run_and_wait(make_executor):
    heard = []
    list(make_executor().map(Task(workers.Square, None), range(5), watch=heard.append))
    assert heard, "nothing was said"
    running, queued = [load.running for load in heard], [load.queued for load in heard]
    assert 1 in running, "while something ran nobody said so"
    assert set(running) <= {0, 1, 2}
    assert queued == sorted(queued, reverse=True), "nothing failed, so nothing went back to the queue"
    assert queued[-1] == 0
    assert all(load.workers.get("working", 0) == load.running for load in heard), "who has an item works"
    assert not any(load.retries for load in heard)


def test_who_watches_hears_what_is_tried_again_and_why(make_executor):
    heard = []
    items = [("application", 2), ("memory", 3)]
    list(make_executor().map(MOODY, items, watch=heard.append))
    assert heard[-1].retries == {"application": 2, "memory": 3}


def test_who_watches_hears_how_far_the_running_items_are(make_executor, tmp_path):
    """An item goes on only after its units were heard of, so the test fails by a timeout where none are."""
    heard = []

    def watch(load):
        heard.append(load.units)
        if load.units:
            (tmp_path / f"{load.units:g}").touch()

    (outcome,) = make_executor().map(Task(workers.Stepwise, str(tmp_path)), [(1.5, 1.0)], watch=watch)
    assert outcome.error is None, outcome.error
    changes = [units for i, units in enumerate(heard) if i == 0 or units != heard[i - 1]]
    assert changes[:3] == [0.0, 1.5, 2.5]


def test_no_items_need_no_worker(make_executor):
    assert list(make_executor().map(Task(workers.Refusing, Settings(word="never built")), [])) == []


def test_failures_are_tried_again_as_their_class_says(make_executor):
    items = [("application", 0), ("application", 2), ("storage", 2), ("memory", 3)]
    ended = by_item(make_executor().map(MOODY, items))
    assert {item: outcome.result for item, outcome in ended.items()} == {
        ("application", 0): (1, 0),
        ("application", 2): (3, 0),
        ("storage", 2): (3, 0),
        ("memory", 3): (4, 3),
    }, "(attempt, halvings) of the attempt that succeeded"


def test_an_item_over_its_budget_comes_out_with_its_traceback_and_the_others_go_on(make_executor):
    items = [("application", 9), ("input", 9), ("numpy", 9), ("memory", 9), ("application", 0)]
    ended = by_item(make_executor().map(MOODY, items))
    assert {item: outcome.attempts for item, outcome in ended.items()} == {
        ("application", 9): 3,
        ("input", 9): 1,
        ("numpy", 9): 3,
        ("memory", 9): 4,
        ("application", 0): 1,
    }, "attempts are one more than the budget; a UserError is not tried again, a ValueError of numpy is"
    assert {item: outcome.failure for item, outcome in ended.items()} == {
        ("application", 9): Failure.APPLICATION,
        ("input", 9): Failure.INPUT,
        ("numpy", 9): Failure.APPLICATION,
        ("memory", 9): Failure.MEMORY,
        ("application", 0): None,
    }
    assert ended["input", 9].message == "this item is malformed\nand this is its second line"
    assert "could not be broadcast" in ended["numpy", 9].message
    assert ended["application", 0].message == ""
    assert "Traceback" in ended["application", 9].error
    assert "KeyError: 'application trouble'" in ended["application", 9].error
    assert "this item is malformed" in ended["input", 9].error
    assert ended["application", 0].error is None


def test_storage_that_stays_away_ends_with_exit_code_4(make_executor):
    ended, outcomes = [], make_executor(Budgets(infrastructure=1)).map(MOODY, [("storage", 9), ("application", 0)])
    with pytest.raises(InfrastructureExhausted, match="storage trouble") as raised:
        ended.extend(outcomes)
    assert raised.value.exit_code == 4
    assert by_item(ended)["application", 0].error is None, "the other items were not done"
    assert "ConnectionError" in by_item(ended)["storage", 9].error


def test_a_wrong_setting_reaches_the_user_in_its_own_words(make_executor):
    words = "projector.dim must be even, not 7"
    with pytest.raises(WorkerFailed) as raised:
        list(make_executor().map(Task(workers.Refusing, Settings(word=words)), range(3)))
    assert str(raised.value) == words
    assert raised.value.exit_code == 2


def test_a_bug_that_raises_value_error_is_not_the_users_mistake(make_executor):
    with pytest.raises(WorkerFailed, match="could not be broadcast") as raised:
        list(make_executor().map(Task(workers.Miscounting, None), range(3)))
    assert raised.value.exit_code == 5
    assert "Traceback" in str(raised.value)


def test_workers_that_cannot_be_built_end_with_the_first_traceback(make_executor):
    with pytest.raises(WorkerFailed, match="3 workers in a row could not be built") as raised:
        list(make_executor().map(Task(workers.Unbuildable, Settings(word="no such layer")), range(3)))
    assert raised.value.exit_code == 5
    assert "RuntimeError: no such layer" in str(raised.value)


def test_a_construction_that_meets_absent_storage_is_tried_again(make_executor, tmp_path):
    ended = by_item(make_executor().map(Task(workers.LateStorage, Settings(folder=str(tmp_path))), [2, 3]))
    assert {item: outcome.result for item, outcome in ended.items()} == {2: 4, 3: 9}
    assert all(outcome.attempts == 1 for outcome in ended.values()), "a worker that never stood costs an item nothing"


def test_the_serial_executor_does_not_import_ray():
    program = "import cluster.serial, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0, "cluster=serial needs no Ray"
