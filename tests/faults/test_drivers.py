"""A driver that is killed, stopped, or not alone: the same command ends with the same result, nothing done twice."""

import signal

import pytest

from jobs.gc import GcConfig, gc
from tests.faults.sound import lasting, temporaries
from tests.faults.watcher import AtCreate, InsideWrite, appear
from tests.jobs.world import files_under

MOMENTS = {
    "while sources are indexed": AtCreate("sources/*/records/*", nth=1),
    "before the plan": AtCreate("audits/*/plan.parquet"),
    "between a part and its record": AtCreate("*/commits/*", nth=3),
    "inside the write of a part": InsideWrite("*/parts/*", nth=4),
    "during the Gram": AtCreate("*/grams/*"),
    "during scoring": AtCreate("*/scores/*", nth=4),
    "between results and manifest": AtCreate("*/manifest.json"),
    "between manifest and hint": AtCreate("*/manifest.json", after=True),
}


def done(files: dict[str, int]) -> int:
    return sum("/parts/" in name and name.endswith(".parquet") for name in files)


# Whatever stands on storage is looked at in one place; these differ from the others in how much stands.
LIKE_OTHERS = (
    "before the plan",
    "inside the write of a part",
    "during the Gram",
    "during scoring",
    "between results and manifest",
    "between manifest and hint",
)


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=pytest.mark.soak if m in LIKE_OTHERS else ()) for m in MOMENTS]
)
def test_a_killed_driver_is_resumed_by_the_same_command(moment, start, undisturbed, tmp_path, capsys):
    store = tmp_path / "store"
    assert start(MOMENTS[moment]).wait() == -signal.SIGKILL, "the driver ended before it could be killed"
    before = lasting(files_under(store))
    again = start()
    assert again.wait() == 0, again.said
    assert before.items() <= lasting(files_under(store)).items(), "a file that stood was written again"
    if moment == "between manifest and hint":
        assert "nothing to compute, no gradient work done" in again.said
    else:
        assert f"{done(before)} of 8 shards are done" in again.said, "a finished shard was computed again"
    undisturbed.require_same(store)
    left = temporaries(store)
    assert len(left) == (moment == "inside the write of a part"), left
    gc(GcConfig(store=str(store), delete=True, grace_hours=0))
    assert not temporaries(store), "gc does not find what a killed write left"
    assert capsys.readouterr().out.count("temporary file") == 2 * len(left)
    undisturbed.require_same(store)


def test_a_driver_killed_from_outside_in_the_middle_of_a_shard(start, undisturbed, tmp_path):
    store = tmp_path / "store"
    driver = start()
    appear(store, "features/*/commits/*.json", 2)
    driver.signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    before = lasting(files_under(store))
    assert done(before) < 8, "it was killed too late: nothing was left to do"
    again = start()
    assert again.wait() == 0, again.said
    assert before.items() <= lasting(files_under(store)).items(), "a file that stood was written again"
    assert f"{done(before)} of 8 shards are done" in again.said, "a finished shard was computed again"
    undisturbed.require_same(store)


def test_two_commands_at_once_leave_one_audit(start, undisturbed, tmp_path):
    store = tmp_path / "store"
    both = [start(), start()]
    codes = [driver.wait() for driver in both]
    assert codes == [0, 0], "\n".join(driver.said for driver in both)
    assert not any("is finished: nothing to compute" in driver.said for driver in both), "they came one after the other"
    undisturbed.require_same(store)
    assert not temporaries(store)


@pytest.mark.soak
def test_a_driver_that_slept_while_another_finished_does_no_harm(start, undisturbed, tmp_path):
    store = tmp_path / "store"
    zombie = start(AtCreate("*/parts/*", nth=3, signal=signal.SIGSTOP))
    appear(store, "features/*/commits/*.json", 2)
    other = start()
    assert other.wait() == 0, other.said
    before = lasting(files_under(store))
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 0, zombie.said
    assert lasting(files_under(store)) == before, "a zombie replaced a file of the finished audit, or added one"
    undisturbed.require_same(store)
