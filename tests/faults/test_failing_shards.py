"""A shard whose work fails for good: the others are done, its traceback is kept, and only it is tried again."""

from tests.faults.sound import lasting
from tests.faults.watcher import Breaks
from tests.jobs.world import files_under


def test_a_shard_that_fails_for_good(start, undisturbed, tmp_path):
    store = tmp_path / "store"
    driver = start(Breaks("train-00002-of-00004.parquet", first_row=0))
    assert driver.wait() == 5, driver.said
    assert "featurize: 1 of 8 failed, the others are done" in driver.said
    assert "KeyError: 'a bug that only this shard meets'" in driver.said
    assert "Run the same command again to retry only those." in driver.said
    assert "error: " in driver.said
    before = lasting(files_under(store))
    assert sum("/parts/" in name for name in before) == sum("/commits/" in name for name in before) == 7
    assert not (store / "audits/first/manifest.json").exists()
    (log,) = (store / "audits/first/failures/featurize").iterdir()
    assert "Traceback" in log.read_text()
    assert "a bug that only this shard meets" in log.read_text()

    mended = start()
    assert mended.wait() == 0, mended.said
    assert "7 of 8 shards are done, 1 to compute" in mended.said
    assert before.items() <= lasting(files_under(store)).items(), "a finished shard, or the log, was written again"
    undisturbed.require_same(store)
