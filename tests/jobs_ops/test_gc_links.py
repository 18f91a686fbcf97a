"""gc and what it cannot see at once: links, disks that are not mounted, folders it may not list, wrong clocks."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from concept_trak import UserError
from concept_trak.audit.status import audits_of
from concept_trak.store.manifest import finish_audit, recency
from concept_trak.store.store import Store
from jobs.gc import GcConfig, gc
from jobs.status import StatusConfig, status
from jobs.verify import VerifyConfig, verify
from tests.jobs_ops.audited import Audited
from tests.jobs_ops.test_gc_job import age, strangers


def collect(audited: Audited, **keys) -> None:
    assert gc(GcConfig(store=str(audited.store), delete=True, grace_hours=0, **keys)) == 0


def moved(path: Path, to: Path) -> Path:
    """The folder elsewhere, and a link where it was."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, to)
    path.symlink_to(to)
    return to


@pytest.mark.parametrize("behind", ["audits/demo", "audits", "features", "."])
def test_a_finished_audit_behind_a_link_keeps_its_features(audited: Audited, capsys, behind: str):
    shutil.rmtree(audited.store / "audits/older")
    moved(audited.store / behind, audited.root / "live/disk/folder")
    age(audited.root / "live")
    features = set(audited.written())
    assert len(audited.parts()) == 4
    collect(audited, keep=1)
    assert set(audited.written()) == features
    status(StatusConfig(store=str(audited.store)))
    assert "demo: finished" in capsys.readouterr().out
    assert verify(VerifyConfig(store=str(audited.store))) == 0


def test_what_is_behind_a_link_may_be_another_stores_and_stays(audited: Audited):
    """Two stores with one folder of features: neither knows the audits of the other."""
    second = audited.root / "live/second"
    (second / "audits").mkdir(parents=True)
    (second / "features").symlink_to(audited.store / "features")
    shutil.move(audited.store / "audits/older", second / "audits")
    strangers(audited)
    (second / "audits/demo").symlink_to(audited.store / "audits/demo")
    before = set(audited.written(""))
    assert gc(GcConfig(store=str(second), delete=True, grace_hours=0, keep=1, days=0.001, unfinished_days=0.001)) == 0
    assert set(audited.written("")) == before


@pytest.mark.parametrize("behind", ["audits/demo", "audits"])
def test_a_disk_that_is_not_mounted_stops_gc(audited: Audited, behind: str):
    disk = moved(audited.store / behind, audited.root / "live/disk/folder")
    before = set(audited.written())
    shutil.move(disk, audited.root / "live/unmounted")
    with pytest.raises((UserError, OSError), match=rf"{behind} is a link to nothing.*[Mm]ount its disk, or remove the"):
        collect(audited)
    assert set(audited.written()) == before


def test_a_folder_that_cannot_be_listed_stops_gc(audited: Audited, monkeypatch):
    """As root no mode of a folder forbids anything, so the call is made to fail."""
    scandir = os.scandir

    def refusing(folder: str):
        if str(folder).endswith("audits/demo"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    before = set(audited.written())
    shutil.rmtree(audited.store / "audits/older")
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="audits/demo"):
        collect(audited)
    monkeypatch.undo()
    assert set(audited.written()) == before


def test_an_audit_that_was_moved_into_a_folder_stops_gc(audited: Audited):
    (audited.store / "audits/archive").mkdir()
    shutil.move(audited.store / "audits/demo", audited.store / "audits/archive")
    before = set(audited.written())
    with pytest.raises(UserError, match=r"archive/demo/audit.yaml is of an audit in a folder of its own"):
        collect(audited)
    assert set(audited.written()) == before


def test_links_in_a_circle_end(audited: Audited):
    (audited.store / "features/again").symlink_to(audited.store)
    (audited.store / "audits/demo/itself").symlink_to(audited.store / "audits/demo/itself")
    names = Store(str(audited.store)).names("")
    assert len(names) == len(set(names))
    assert "audits/demo/manifest.json" in names
    assert len(names) < 200
    collect(audited)
    assert audited.run("demo") == 0


@pytest.mark.parametrize("delete", [False, True])
def test_a_store_that_is_not_there_is_a_mistake(tmp_path, delete: bool):
    with pytest.raises(UserError, match=r"typo holds nothing; expected a store that `python -m jobs.audit`"):
        gc(GcConfig(store=str(tmp_path / "typo"), delete=delete))
    assert not (tmp_path / "typo").exists()


def test_a_clock_ahead_makes_no_young_file_old(audited: Audited, monkeypatch):
    """The clock of this machine jumped ten years ahead; the storage's did not."""
    strangers(audited)
    before, now = set(audited.written()), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10 * 365 * 86400)
    assert gc(GcConfig(store=str(audited.store), delete=True, days=30, unfinished_days=30)) == 0
    assert set(audited.written()) == before
    assert audited.audit("demo").store.names("audits/older")
    assert not [name for name in os.listdir(audited.store) if "probe" in name]


def test_files_from_the_future_are_young(audited: Audited):
    strangers(audited)
    for path in audited.store.rglob("*"):
        os.utime(path, (time.time() + 1e8, time.time() + 1e8))
    before = set(audited.written())
    collect(audited, keep=1, days=0.001)
    assert set(audited.written()) == before


def test_an_audit_dated_in_the_future_takes_no_place_of_the_newest(audited: Audited):
    """The clock jumped ahead while `older` ended, and went back."""
    path = audited.store / "audits/older/manifest.json"
    path.write_text(path.read_text().replace('"finished": "20', '"finished": "21'))
    assert audited.run("next", "damping=3") == 0
    age(audited.store)
    assert gc(GcConfig(store=str(audited.store), delete=True, keep=1)) == 0
    assert audits_of(Store(str(audited.store))) == ["next", "older"]


def test_the_newest_audit_is_not_one_from_the_future(audited: Audited):
    path = audited.store / "audits/older/manifest.json"
    path.write_text(path.read_text().replace('"finished": "20', '"finished": "21'))
    latest = audited.store / "audits/latest.json"
    latest.write_text('{"audit": "older", "finished": "2126-01-01T00:00:00+00:00"}')
    assert audited.run("next", "damping=3", "since=latest") == 0
    assert '"audit":"next"' in latest.read_text().replace(" ", "").replace("\n", "")
    assert (audited.store / "audits/next/diff-demo.parquet").exists(), "compared with the audit from the future"
    assert recency("2126-01-01T00:00:00+00:00") < recency("2026-01-01T00:00:00+00:00") < recency("2026-01-02T00:00:00")
    assert finish_audit(audited.audit("next"), [], [], {})["audit"] == "next"


def test_reading_a_table_leaves_no_thread_with_its_bytes():
    """When Python ended before such a thread, the process aborted: exit code 134 after the work was done."""
    code = """if True:
        import os, pyarrow as pa
        from concept_trak.store.tables import read_parquet, to_parquet
        data = to_parquet(pa.table({"a": list(range(1000)), "b": ["x"] * 1000}))
        before = len(os.listdir("/proc/self/task"))
        read_parquet(data)
        print(len(os.listdir("/proc/self/task")) - before)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "0\n"
