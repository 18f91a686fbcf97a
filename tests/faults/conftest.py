"""One world of 64 rows in 8 shards, and one audit of it that nothing disturbed."""

from pathlib import Path

import pytest

from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.models import small
from tests.faults.sound import Undisturbed
from tests.faults.watcher import Driver, Fault, drive
from tests.jobs.world import RESOLUTION, World


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("faults")
    small.pixel_pipeline(0, RESOLUTION).save_pretrained(root / "pixels")
    write_synthetic(root / "shapes", 64, seed=0, files=4, resolution=RESOLUTION)
    return World(root)


@pytest.fixture(scope="session")
def undisturbed(world: World, tmp_path_factory) -> Undisturbed:
    return Undisturbed(world.audit(tmp_path_factory.mktemp("undisturbed"), model="pixels"))


@pytest.fixture
def start(world: World, tmp_path: Path):
    """Starts drivers of one audit on one store; those that a test leaves behind are killed."""
    drivers: list[Driver] = []

    def start(*faults: Fault, more: tuple[str, ...] = ()) -> Driver:
        log = tmp_path / f"driver-{len(drivers)}.log"
        drivers.append(drive(world.arguments(tmp_path / "store", *more, model="pixels"), log, *faults))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.join()
