"""Faults over minutes: a node that is taken away, and a run of 300 shards that is killed again and again."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from concept_trak.data.benchmarks.synthetic import write_synthetic
from jobs.gc import GcConfig, gc
from tests.faults.sound import Undisturbed, lasting, temporaries
from tests.faults.watcher import ACTOR, Driver, Hires, appear, descendants, drive, processes, until
from tests.jobs.world import RESOLUTION, files_under

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
XDIST = "PYTEST_XDIST_WORKER"  # set in a worker of pytest-xdist, whose parent starts all of them
SHARDS, ROWS, KILLS, GAP = 300, 1, 10, 8.0  # at least so many kills, so many seconds apart on average


@pytest.fixture
def nodes():
    """A head without CPUs, so that no work lands on it, and three nodes with one each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 * 2**20})
    added = [nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(3)]
    yield nodes, added
    nodes.shutdown()


def test_a_node_is_taken_away(nodes, world, undisturbed, tmp_path):
    cluster, added = nodes
    store = tmp_path / "store"
    said = ("cluster=ray", f"cluster.address={cluster.address}", "cluster.shared_store=true")
    driver = drive(world.arguments(store, *said, model="pixels"), tmp_path / "log")
    appear(store, "features/*/commits/*.json", 1, seconds=240)
    cluster.remove_node(added[0], allow_graceful=False)
    assert driver.wait(400) == 0, driver.said
    assert "no answer from" in driver.said, "the node was idle when it was removed: this proves nothing"
    undisturbed.require_same(store)
    assert not temporaries(store)


def test_a_worker_that_hangs_costs_one_lease(world, undisturbed, tmp_path):
    store, books = tmp_path / "store", tmp_path / "books"
    books.mkdir()
    said = ("cluster=local", "cluster.workers=2", "budget.lease=45")
    driver = drive(world.arguments(store, *said, model="pixels"), tmp_path / "log", Hires("Stopped", str(books)))
    assert driver.wait(400) == 0, driver.said
    assert driver.said.count("infrastructure failure 1, tried again up to 10 times") == 1, driver.said
    assert "so it hangs and was killed. If an attempt may take that long, raise budget.lease" in driver.said
    undisturbed.require_same(store)
    stopped = int((books / "stopped").read_text())
    until(lambda: stopped not in processes(), "the end of the worker that hung")


def ray_processes() -> dict[int, str]:
    """Every process of Ray on this machine but those of tests that run beside this one."""
    words = ("raylet", "gcs_server", "ray::", "ray/_private", "ray/dashboard")
    found = {pid: command for pid, (_, command) in processes().items() if any(w in command for w in words)}
    beside = descendants(os.getppid()).keys() - descendants(os.getpid()).keys() if XDIST in os.environ else set()
    return {pid: command for pid, command in found.items() if pid not in beside}


def test_three_hundred_shards_and_ten_kills(world, tmp_path, capsys):
    write_synthetic(tmp_path / "many", ROWS * SHARDS, seed=0, files=10, resolution=RESOLUTION)
    source, many = f"data.uri={tmp_path}/many", f"data.shard_rows={ROWS}"
    # The answer does not depend on how the rows are cut, and few large shards are soon done.
    calm = Undisturbed(world.audit(tmp_path / "calm", source, "data.shard_rows=60", model="pixels"))
    before, store, log = ray_processes(), tmp_path / "store", tmp_path / "log"
    arguments = world.arguments(store, source, many, "cluster=local", "cluster.workers=2", model="pixels")
    kills, everyone, standing, chance = Counter(), set(), {}, random.Random(1)
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        driver = drive(arguments, log, Hires("Slow"))
        while driver.process.is_alive() and kills.total() < KILLS:
            if kills.total() % 2:
                await_work(driver, store)
            everyone |= strike(driver, chance, kills)
        code = driver.wait(900)
        now = lasting(files_under(store))
        assert standing.items() <= now.items(), "a file that stood was written again, or is gone"
        standing = now
    assert code == 0, driver.said[-5000:]
    assert kills.total() >= KILLS, f"the run ended before its time: {kills}"
    assert set(kills) == {"driver", "worker"}
    calm.require_same(store)
    with capsys.disabled():
        print(f"\nkills: {dict(kills)}; starts: {driver.said.count('audit      first')}")
    gc(GcConfig(store=str(store), delete=True, grace_hours=0))
    assert not temporaries(store)
    until(lambda: not everyone & processes().keys(), "the end of every process of the run")
    until(lambda: not ray_processes().keys() - before.keys(), "the end of every process of Ray")


def await_work(driver: Driver, store: Path) -> None:
    """Wait for the next shard, so that every second kill falls amid work, however slowly workers start."""
    before, end = shards_done(store), time.monotonic() + 50 * GAP
    while driver.process.is_alive() and shards_done(store) == before:
        assert time.monotonic() < end, "no shard was done between two kills"
        time.sleep(0.2)


def shards_done(store: Path) -> int:
    return len(list(store.glob("features/*/commits/*.json")))


def strike(driver: Driver, chance: random.Random, kills: Counter) -> set[int]:
    """Wait about `GAP` seconds, then kill a worker or, every third time, the driver; returns who worked for it."""
    end = time.monotonic() + chance.expovariate(1 / GAP)
    until(lambda: not driver.process.is_alive() or time.monotonic() > end, "the next kill", seconds=50 * GAP)
    everyone = descendants(driver.pid) if driver.process.is_alive() else {}
    crew = sorted(pid for pid, command in everyone.items() if command.startswith(ACTOR))
    victim = "driver" if kills.total() % 3 == 2 else "worker"
    if everyone and (crew or victim == "driver"):
        os.kill(driver.pid if victim == "driver" else chance.choice(crew), signal.SIGKILL)
        kills[victim] += 1
    if victim == "driver":
        driver.process.join()
    return set(everyone)
