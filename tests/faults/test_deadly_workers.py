"""Workers on Ray that are killed at every moment of a shard, or run out of memory, in one audit."""

import json
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.sound import temporaries
from tests.faults.watcher import Driver, Hires, OnlyFeaturizesOnRay, descendants, drive, processes, until
from tests.jobs.world import World

# A process a death: minutes beside other tests.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
KILLED = ("mid_shard", "before_part", "before_record", "after_record")


@dataclass(frozen=True)
class Struck:
    """What the audit with deadly workers left."""

    store: Path
    books: Path
    driver: Driver
    code: int
    crew: dict[int, str]

    def shard(self, fate: str) -> str:
        return (self.books / fate).read_text()

    def work(self) -> list[tuple[str, int, int]]:
        """(shard, attempt, samples in the batch) of everything that was given to the model."""
        lines = (line.split() for line in (self.books / "work").read_text().splitlines())
        return [(shard, int(attempt), int(samples)) for shard, attempt, samples in lines]

    def record(self, fate: str) -> dict:
        (path,) = self.store.glob(f"features/*/commits/{self.shard(fate)}.json")
        return json.loads(path.read_text())


@pytest.fixture(scope="module")
def struck(world: World, tmp_path_factory) -> Struck:
    root = tmp_path_factory.mktemp("struck")
    books = root / "books"
    books.mkdir()
    arguments = world.arguments(root / "store", "cluster=local", "cluster.workers=2", "model.batch=8", model="pixels")
    driver = drive(arguments, root / "log", Hires("Fated", str(books)), OnlyFeaturizesOnRay())
    pid = books / "pid"
    until(lambda: pid.exists() and pid.read_text(), "a worker in the middle of its shard")
    crew = descendants(driver.pid)
    assert int(pid.read_text()) in crew, "the worker is no process of this run"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    return Struck(root / "store", books, driver, driver.wait(), crew)


def test_the_answer_is_the_same(struck: Struck, undisturbed):
    assert struck.code == 0, struck.driver.said
    undisturbed.require_same(struck.store)
    assert not temporaries(struck.store)


@pytest.mark.parametrize("fate", ["mid_shard", "before_part"])
def test_a_shard_whose_worker_died_before_its_part_is_computed_again(struck: Struck, fate: str):
    assert [w[1:] for w in struck.work() if w[0] == struck.shard(fate)] == [(1, 8), (2, 8)]
    assert struck.record(fate)["attempt"] == 2


@pytest.mark.parametrize("fate", ["before_record", "after_record"])
def test_a_shard_whose_part_stands_is_not_computed_again(struck: Struck, fate: str):
    assert [w[1:] for w in struck.work() if w[0] == struck.shard(fate)] == [(1, 8)], (
        "the part stood on storage: its record is read from it"
    )
    assert struck.record(fate)["attempt"] == (1 if fate == "after_record" else 0)


def test_a_batch_that_does_not_fit_is_halved(struck: Struck):
    assert [w[1:] for w in struck.work() if w[0] == struck.shard("out_of_memory")] == [(1, 8), (2, 4), (2, 4)]
    assert struck.record("out_of_memory")["attempt"] == 2


def test_every_other_shard_is_done_once(struck: Struck):
    touched = {struck.shard(fate) for fate in (*KILLED, "out_of_memory")}
    others = Counter(shard for shard, _, _ in struck.work() if shard not in touched)
    assert (len(touched), len(others), set(others.values())) == (5, 3, {1})


def test_each_loss_is_said_and_counted(struck: Struck):
    stages = json.loads((struck.store / "audits/first/metrics.json").read_text())["stages"]
    assert stages["featurize"]["retries"] == 5
    assert struck.driver.said.count("infrastructure failure 1, tried again up to 10 times") == 4
    assert struck.driver.said.count("memory failure 1, tried again up to 3 times") == 1


def test_no_process_of_the_run_is_left(struck: Struck):
    until(lambda: not struck.crew.keys() & processes().keys(), f"the end of {struck.crew}", seconds=20)
