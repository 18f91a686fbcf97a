"""Components: a worker killed on Ray, a killed driver, and what gc and verify make of their units."""

import os
import signal
from pathlib import Path

import pytest

from jobs.gc import GcConfig, gc
from jobs.verify import VerifyConfig, verify
from tests.faults.watcher import ACTOR, AtCreate, Driver, appear, descendants, drive
from tests.jobs.world import World, files_under

CONCEPTS = ("{name: red, prompt: a red triangle, without_prompt: a triangle}",
            "{name: red, prompt: a red circle, without_prompt: a circle}")  # fmt: skip
UNITS = "components/units/*.safetensors"


def start(world: World, store: Path, *faults, cluster: str = "serial", seeds: str = "[0,1]") -> Driver:
    said = (f"store={store}", f"model.path={world.root}/pixels", f"concepts=[{','.join(CONCEPTS)}]", f"seeds={seeds}",
            "probe.points=5", "probe.every=2", f"cluster={cluster}", "cluster.workers=1", "top=5")  # fmt: skip
    return drive(said, store.parent / f"{store.name}-{len(faults)}.log", *faults, verb="components")


def results(store: Path) -> dict[str, bytes]:
    return {n: (store / n).read_bytes() for n in files_under(store) if n.startswith("components/")}


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("whole") / "store"
    assert start(world, store).wait() == 0
    found = results(store)
    assert sum("/units/" in name for name in found) == 4, "two prompts with two seeds"
    return found


@pytest.mark.soak
@pytest.mark.timeout(1200)  # three starts of a worker, each of them with its imports
def test_a_worker_killed_on_ray_costs_nothing_but_its_trajectory(world, whole, tmp_path):
    store = tmp_path / "store"
    driver = start(world, store, cluster="local", seeds="[0,1]")
    appear(store, UNITS, 1, seconds=600)
    # Not Ray's agents: a node whose agents die dies with them, and the test would wait for it.
    killed = [pid for pid, command in descendants(driver.pid).items() if command.startswith(ACTOR)]
    assert killed, "no worker of Ray was found: the work did not go there"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert driver.wait(600) == 0, driver.said
    assert results(store) == whole, "not what an undisturbed run in one process leaves"


def test_a_killed_driver_goes_on_where_it_stopped(world, whole, tmp_path):
    store = tmp_path / "store"
    assert start(world, store, AtCreate("components/units/*", nth=3)).wait() == -signal.SIGKILL
    before = files_under(store)
    again = start(world, store)
    assert again.wait() == 0, again.said
    assert "4 trajectories, 2 of them to measure" in again.said
    standing = {name: when for name, when in before.items() if "/units/" in name}
    assert standing.items() <= files_under(store).items(), "what stood was measured again"
    assert results(store) == whole


def test_gc_takes_units_that_no_run_lists_and_verify_finds_what_is_altered(world, whole, tmp_path, capsys):
    store = tmp_path / "store"
    for name, data in whole.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(data)
    stray = store / "components/units/0123456789abcdef.safetensors"
    unit = sorted(store.glob(UNITS))[0]
    stray.write_bytes(unit.read_bytes())
    assert gc(GcConfig(store=str(store), delete=True, grace_hours=0)) == 0
    assert "unit " in capsys.readouterr().out
    assert results(store) == whole, "gc took what a run lists, or left what none does"
    assert verify(VerifyConfig(store=str(store))) == 0
    data = bytearray(unit.read_bytes())
    data[-1] ^= 1
    unit.write_bytes(bytes(data))
    assert verify(VerifyConfig(store=str(store))) == 6
    assert f"altered              components/units/{unit.name}" in capsys.readouterr().out
    assert verify(VerifyConfig(store=str(store), repair=True)) == 0
    assert start(world, store).wait() == 0
    assert results(store) == whole
