"""A disk that is full, a folder that may not be written, a quota: one message, nothing half-written, and it resumes.

The full disk is a small tmpfs in a mount namespace of its own. Where that cannot be made, the test says so and skips;
the quota then still shows what a write does that fails in the middle.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from concept_trak.store.identity import FeatureSet
from concept_trak.store.records import derive_record
from concept_trak.store.store import Store
from jobs.configure import CONF
from tests.faults.sound import lasting, temporaries
from tests.faults.watcher import BoundByModes, SmallFiles, appear
from tests.jobs.world import files_under

# The disk is gone with its namespace, so what stood on it is copied out first.
ON_A_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99
disk=$2 out=$3; shift 3
"$@"; code=$?
cp -a "$disk/." "$out"; exit $code
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def on_a_disk(size: str, disk: Path, out: Path, command: list[str]) -> subprocess.CompletedProcess:
    """Run a command with a tmpfs of that size at `disk`; what stands there in the end is copied to `out`."""
    disk.mkdir()
    out.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", ON_A_DISK, "sh", size, str(disk), str(out), *command],
        cwd=CONF.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def require_whole(store: Path) -> int:
    """Every part that stands is whole; how many there are."""
    assert not temporaries(store), "a write that failed left its temporary file"
    parts = list(store.glob("features/*/parts/*.parquet"))
    for part in parts:
        derive_record(Store(str(store)), FeatureSet(part.parent.parent.name), part.stem)
    return len(parts)


@pytest.mark.soak
def test_a_full_disk(world, start, undisturbed, tmp_path):
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("no mount namespace can be made here, so no small disk")
    out, disk = tmp_path / "store", tmp_path / "disk"
    arguments = world.arguments(disk, "budget.infrastructure=1", model="pixels")
    ended = on_a_disk("140k", disk, out, [sys.executable, "-m", "jobs.audit", *arguments])
    assert ended.returncode == 4, ended.stdout + ended.stderr
    assert "No space left on device" in ended.stderr
    assert f"{disk}/features/" in ended.stderr, "the message names the file"
    assert "run the same command again" in ended.stderr.lower()
    stood = require_whole(out)
    assert 0 < stood < 8, "the disk is too small or too large to be full in the middle of the work"
    before = lasting(files_under(out))
    resumed = start()  # on a larger disk
    assert resumed.wait() == 0, resumed.said
    assert f"{stood} of 8 shards are done" in resumed.said
    assert before.items() <= lasting(files_under(out)).items()
    undisturbed.require_same(out)


def test_a_folder_that_may_not_be_written_from_the_beginning(start, tmp_path):
    store = tmp_path / "store"
    store.mkdir(mode=0o555)
    refused = start(BoundByModes())
    assert refused.wait() == 2, refused.said
    assert f"error: store {store} cannot be used: [Errno 13] Permission denied" in refused.said
    assert "Expected permission to write" in refused.said
    assert "Traceback" not in refused.said
    assert not list(store.iterdir())


@pytest.mark.soak
def test_a_folder_that_may_not_be_written_any_more(start, undisturbed, tmp_path):
    store = tmp_path / "store"
    driver = start(BoundByModes(), more=("budget.infrastructure=1",))
    appear(store, "features/*/commits/*.json", 2)
    (parts,) = store.glob("features/*/parts")
    parts.chmod(0o555)
    code = driver.wait()
    parts.chmod(0o755)
    assert code == 4, driver.said
    assert "Permission denied" in driver.said
    assert f"{parts}/" in driver.said
    stood = require_whole(store)
    assert 0 < stood < 8
    resumed = start()
    assert resumed.wait() == 0, resumed.said
    assert f"{stood} of 8 shards are done" in resumed.said
    undisturbed.require_same(store)


@pytest.mark.soak
def test_a_quota_that_the_results_meet(start, undisturbed, tmp_path):
    store = tmp_path / "store"
    driver = start(SmallFiles(20_000), more=("budget.infrastructure=1",))
    assert driver.wait() == 4, driver.said
    assert "File too large" in driver.said
    assert "audits/first/" in driver.said, "the message names the file"
    assert "Traceback" not in driver.said
    assert not (store / "audits/first/manifest.json").exists()
    assert require_whole(store) == 8
    before = lasting(files_under(store))
    resumed = start()
    assert resumed.wait() == 0, resumed.said
    assert "8 of 8 shards are done, no gradient work" in resumed.said
    assert before.items() <= lasting(files_under(store)).items()
    undisturbed.require_same(store)
