"""How many items are running, and whether the driver still lives: from the store alone, while it happens."""

import io
import json
import math
import threading
import time
from pathlib import Path

import pytest
from observed import Asking, Gated, Item

from cluster.executor import Load, Outcome, Task
from cluster.serial import Serial
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.execute import BudgetConfig, ClusterConfig, RunConfig, executor
from jobs.progress import Progress
from jobs.status import StatusConfig, status
from tests.faults.watcher import until
from tests.jobs_ops.observed import told

HERE = str(Path(__file__).parent)


def tracked(store: Path, interval: float, executor, task: Task, count: int) -> list:
    progress = Progress(Audit(Store(str(store)), "first"), interval)
    items = [Item(i) for i in range(count)]
    return list(progress.track("featurize", executor.map(task, items, watch=progress.watch), items))


@pytest.fixture
def two_workers():
    import ray

    from cluster.on_ray import OnRay

    executor = OnRay(workers=2, env_vars={"PYTHONPATH": HERE})
    executor.connect()
    yield executor
    ray.shutdown()


def test_items_that_workers_are_at_are_running_before_any_is_done(two_workers, tmp_path, capsys):
    store, gate, ended = tmp_path / "store", tmp_path / "gate", []
    gate.mkdir()
    task = Task(Gated, str(gate))
    run = threading.Thread(target=lambda: ended.extend(tracked(store, 0.2, two_workers, task, 3)))
    run.start()
    try:
        progress = store / "audits/first/progress.json"
        until(progress.exists, "the first word about the run")
        until(lambda: "  featurize  0 of 3 done, 2 running, 0 of 3 samples" in told(store), "two items are running")
        before = json.loads(progress.read_text())
        until(lambda: json.loads(progress.read_text())["time"] > before["time"], "another word, though nothing changed")
        assert json.loads(progress.read_text())["stages"] == before["stages"]
    finally:
        (gate / "open").touch()
        run.join()
    assert len(ended) == 3
    assert capsys.readouterr().out.count("2 running, 0 of 3 samples") == 1, (
        "a line that says nothing new is not printed"
    )
    assert "3 of 3 done, " in told(store)[1]
    assert "running" not in told(store)[1], "what has ended runs no more"


def test_in_one_process_the_item_that_runs_is_told_when_it_begins(tmp_path, capsys):
    """It says nothing more until the item has ended, so its first word must not wait for the interval."""
    (first, second) = tracked(tmp_path, 1000.0, Serial(), Task(Asking, str(tmp_path)), 2)
    assert first.error is None, first.error
    assert "featurize  0 of 2 done, 1 running" in first.result
    assert second.error is None
    assert json.loads((tmp_path / "audits/first/progress.json").read_text())["running"] == 0


def test_a_driver_that_says_nothing_any_more_is_told(tmp_path, capsys):
    outcomes = Serial().map(Task(Asking, str(tmp_path)), [Item(0), Item(1)], watch=(lambda load: None))
    progress = Progress(Audit(Store(str(tmp_path)), "first"), 20.0)
    tracking = progress.track("featurize", outcomes, [Item(0), Item(1)])
    next(tracking)
    progress.written_at = 0.0
    progress.watch(Load(running=1))
    file = tmp_path / "audits/first/progress.json"
    said = json.loads(file.read_text())
    assert "running" in told(tmp_path)[1], "it has just spoken"
    for silence, dead in ((50.0, False), (70.0, True)):
        file.write_text(json.dumps(said | {"time": said["time"] - silence}))
        head, *rest = told(tmp_path)
        assert f"last seen in featurize {silence:.0f} s ago" in head
        assert (f"no word for {silence:.0f} s from a driver that speaks every 20 s: it is dead" in rest[0]) == dead
        assert ("1 were running" in rest[-1]) == dead
        assert ("1 running" in rest[-1]) != dead
    assert status(StatusConfig(store=str(tmp_path))) == 0
    assert "it is dead" in capsys.readouterr().out


class Shard(str):
    """A task of eight samples."""

    samples = 8


class OnTerminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Time that goes on only when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    time = staticmethod(time.time)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("jobs.progress.time", clock)
    monkeypatch.setattr("concept_trak.audit.stage_progress.time", clock)
    return clock


def in_steps(clock, progress, steps):
    """The outcomes of two shards: five seconds of building, then `steps` of two samples, each of two seconds."""
    clock.now += 5
    for name in ("first", "second"):
        progress.watch(Load(running=1))
        for step in range(1, 1 + steps):
            clock.now += 2
            progress.watch(Load(running=1, units=2.0 * step))
        yield Outcome(item=Shard(name), result=name, failure=None, message="", error=None, attempts=1,
                      seconds=2.0 * steps, host="")  # fmt: skip


def test_a_long_shard_moves_with_its_samples(clock, tmp_path, capsys):
    """One sample a second from the first item on: the rate and the time left are right from the first report."""
    progress = Progress(Audit(Store(str(tmp_path)), "first"), 4.0)
    items = [Shard("first"), Shard("second")]
    list(progress.track("featurize", in_steps(clock, progress, 4), items))
    assert capsys.readouterr().out.splitlines() == [
        "featurize  0/2, 1 running, 4 of 16 samples, 1.0 samples/s, 12 s left",
        "featurize  0/2, 1 running, 8 of 16 samples, 1.0 samples/s, 8 s left",
        "featurize  1/2, 1 running, 12 of 16 samples, 1.0 samples/s, 4 s left",
        "featurize  1/2, 1 running, 16 of 16 samples, 1.0 samples/s",
        "featurize  2/2, 1.0 samples/s",
    ]
    stage = progress.counters()["featurize"]
    assert (stage["samples"], stage["samples_of"], stage["seconds"]) == (16, 16, 21.0)


def test_a_shard_that_is_tried_again_takes_its_samples_back(clock, tmp_path, capsys):
    progress = Progress(Audit(Store(str(tmp_path)), "first"), 1.0)
    items = [Shard("first"), Shard("second")]
    tracking = progress.track("featurize", in_steps(clock, progress, 4), items)
    next(tracking)
    clock.now += 3
    progress.watch(Load(running=1, units=6.5))
    assert "0 of 2 done" not in told(tmp_path)[1]
    assert "1 of 2 done, 1 running, 14 of 16 samples" in told(tmp_path)[1]
    clock.now += 1
    progress.watch(Load(running=1, units=0.0))
    assert "1 of 2 done, 1 running, 8 of 16 samples" in told(tmp_path)[1]


def test_the_bar_of_a_terminal_moves_within_a_shard(clock, tmp_path, monkeypatch, capsys):
    screen = OnTerminal()
    monkeypatch.setattr("sys.stderr", screen)
    progress = Progress(Audit(Store(str(tmp_path)), "first"), 4.0)
    list(progress.track("featurize", in_steps(clock, progress, 4), [Shard("first"), Shard("second")]))
    shown = [text.partition("|")[0].split(":")[1].strip() for text in screen.getvalue().split("\r") if "%" in text]
    assert list(dict.fromkeys(shown)) == ["0%", "12%", "25%", "38%", "50%", "62%", "75%", "88%", "100%"]
    assert "1/2, 1 running, 12 of 16 samples, 1.0 samples/s, 4 s left]" in screen.getvalue()
    assert not capsys.readouterr().out, "lines are for those without a terminal"


@pytest.mark.parametrize("kind", ["serial", "local", "ray"])
@pytest.mark.parametrize(("said", "meant"), [(3600.0, 3600.0), (0.0, math.inf)], ids=["an hour", "for ever"])
def test_the_lease_of_the_configuration_is_that_of_the_executor(kind, said, meant):
    assert executor(ClusterConfig(kind=kind), BudgetConfig(lease=said)).budgets.lease == meant
    assert RunConfig().budget.lease == 3600.0
    with pytest.raises(ValueError, match=r"budget\.lease=-1\.0; expected at least 0"):
        BudgetConfig(lease=-1.0)
