"""Only what no audit needs goes, only when it is old, and only when asked."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from concept_trak.audit.repair import gram_nodes
from concept_trak.report import maintenance
from concept_trak.store.gc import Retention
from concept_trak.store.manifest import feature_sets, read_manifest, read_plan
from concept_trak.store.store import Store
from jobs.gc import GcConfig, gc
from jobs.status import StatusConfig, status
from jobs.verify import VerifyConfig, verify
from tests.configured import configure
from tests.faults.watcher import AtDelete, drive
from tests.jobs_ops.audited import Audited, flip, unfinish

STRANGER = "f" * 16  # a feature set that no audit names; sorted after the others
LONG_AGO = time.time() - 72 * 3600


def age(path: Path) -> None:
    """Everything there was written three days ago."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (LONG_AGO, LONG_AGO))


@pytest.fixture
def collected(audited: Audited, capsys):
    """Run gc, and return the files that it listed (or deleted) and its last line."""

    def run(**keys) -> tuple[set[str], str]:
        capsys.readouterr()
        assert gc(GcConfig(store=str(audited.store), **keys)) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line[16:] for line in lines if line[16:].startswith(("features/", "audits/"))}, lines[-1]

    return run


def strangers(audited: Audited) -> set[str]:
    """Features that no audit names: a shard, a record alone, a Gram, and a whole feature set."""
    part = audited.parts()[0]
    fp, gram = part.parent.parent, audited.grams()[0]
    new = [
        fp / "parts/gone-1.parquet",
        fp / "commits/gone-1.json",
        fp / "commits/gone-2.json",
        fp / "grams/f0.safetensors",
    ]
    other = fp.parent / STRANGER
    new += [
        other / "feature_set.json",
        other / "parts/a.parquet",
        other / "commits/a.json",
        other / "grams/a.safetensors",
    ]
    for path in new:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(gram if path.suffix == ".safetensors" else part, path)
    return {audited.name(path) for path in new}


def everything(audited: Audited) -> set[str]:
    return set(audited.written(""))


def test_a_store_whose_audits_live_has_nothing_to_collect(audited: Audited, collected):
    age(audited.store)
    names, last = collected(delete=True)
    assert names == set()
    assert last.endswith("no unneeded file is older than 48 hours")


def test_a_dry_run_lists_and_deletes_nothing(audited: Audited, collected):
    expected = strangers(audited)
    age(audited.store)
    before = audited.written("")
    names, last = collected()
    assert names == expected
    size = sum((audited.store / name).stat().st_size for name in expected)
    assert (
        last == f"total           {8:>8} files {size / 1e6:>12.3f} MB: nothing was deleted; delete=true deletes these"
    )
    assert audited.written("") == before


def test_exactly_what_nothing_needs_is_deleted(audited: Audited, collected):
    before = everything(audited)
    expected = strangers(audited)
    notes = audited.parts()[0].parent.parent / "notes.txt"
    outside = audited.store / "elsewhere/parts/a.parquet"
    outside.parent.mkdir(parents=True)
    for path in (notes, outside):
        path.write_text("somebody's own")
    age(audited.store)
    names, last = collected(delete=True)
    assert (names, last.endswith(": deleted")) == (expected, True)
    assert everything(audited) == before | {audited.name(notes), audited.name(outside)}
    assert verify(VerifyConfig(store=str(audited.store))) == 0
    assert collected(delete=True)[0] == set()


def test_what_is_young_stays_and_keeps_what_belongs_to_it(audited: Audited, collected):
    strangers(audited)
    assert collected()[0] == set(), "everything is younger than the grace"
    assert len(collected(grace_hours=0)[0]) == 8
    age(audited.store)
    fp = audited.parts()[0].parent.parent
    os.utime(fp / "commits/gone-1.json")
    os.utime(fp.parent / STRANGER / "grams/a.safetensors")
    names, _ = collected(delete=True)
    assert {Path(name).name for name in names} == {"gone-2.json", "f0.safetensors", "a.parquet", "a.json"}, (
        "a part was taken without its record, or a feature set in which something is young"
    )


def test_an_unfinished_audit_keeps_what_it_names_whatever_its_age(audited: Audited, collected):
    shutil.rmtree(audited.store / "audits/older")
    unfinish(audited, "demo")
    age(audited.store)
    assert collected(delete=True, grace_hours=0)[0] == set()
    (audited.store / "audits/demo/plan.parquet").unlink()
    assert collected(grace_hours=0)[0] == set(), "an audit that has no plan yet may come to name any of its features"
    shutil.rmtree(audited.store / "audits/demo")
    names, _ = collected(grace_hours=0)
    assert names == set(audited.written()), "no audit is left, so all features go"


def test_an_audit_that_cannot_be_read_stops_everything(audited: Audited, collected):
    strangers(audited)
    before = everything(audited)
    flip(audited.store / "audits/demo/plan.parquet", 40)
    with pytest.raises(
        ValueError, match=r"which features audit demo needs is unknown: .*plan.parquet is damaged.*Nothing more is"
    ):
        collected(delete=True, grace_hours=0)
    (audited.store / "audits/demo/audit.yaml").unlink()
    with pytest.raises(ValueError, match="demo"):
        collected(delete=True, grace_hours=0)
    assert everything(audited) == before - {"audits/demo/audit.yaml"}


def test_keep_takes_the_oldest_finished_audits_and_what_only_they_need(audited: Audited, collected):
    age(audited.store)
    first = audited.store / "audits/older/manifest.json"
    first.write_text(first.read_text().replace('"finished": "20', '"finished": "19'))
    os.utime(first)
    assert collected(keep=1)[0] == set(), "its manifest is young"
    age(audited.store)
    expected = {name for name in everything(audited) if name.startswith("audits/older/")}
    assert collected(keep=2)[0] == set()
    assert collected(keep=1, delete=True)[0] == expected
    assert verify(VerifyConfig(store=str(audited.store))) == 0, "the features of the audit that stays were taken"
    assert audited.run("demo") == 0


def test_an_audit_that_goes_takes_its_features_along(audited: Audited, collected):
    assert audited.run("other", "seed=1") == 0
    shared = {features.fingerprint for features in feature_sets(audited.audit("demo")).values()}
    own = {name for name in audited.written() if name.split("/")[1] not in shared}
    assert len(own) > 8, "another seed is another feature set"
    path = audited.store / "audits/other/manifest.json"
    path.write_text(path.read_text().replace('"finished": "20', '"finished": "19'))
    age(audited.store)
    names, _ = collected(keep=2, delete=True)
    assert {n for n in names if n.startswith("features/")} == own
    assert {n.split("/")[1] for n in names if n.startswith("audits/")} == {"other"}


def test_the_manifest_goes_first_and_the_plan_last(audited: Audited, capsys):
    age(audited.store)
    assert gc(GcConfig(store=str(audited.store), keep=1, delete=True)) == 0
    names = [line[16:] for line in capsys.readouterr().out.splitlines() if line[16:].startswith("audits/")]
    relative = [name.split("/", 2)[2] for name in names]
    assert relative[0] == "manifest.json"
    assert relative[-2:] == ["plan.parquet", "audit.yaml"]


def test_gc_killed_after_any_deletion_leaves_an_audit_that_can_go_on(audited: Audited, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        """Stands in for SIGKILL at an exact place, which no signal can be aimed at."""

    age(audited.store)
    plain, left = Store.delete, 4

    def dying(self: Store, name: str) -> None:
        nonlocal left
        if (left := left - 1) < 0:
            raise Killed
        plain(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", dying)
        with pytest.raises(Killed):
            gc(GcConfig(store=str(audited.store), keep=1, delete=True))
    (halved,) = [name for name in ("older", "demo") if read_manifest(audited.audit(name)) is None]
    assert audited.run(halved, *(["damping=10"] if halved == "older" else [])) == 0
    assert verify(VerifyConfig(store=str(audited.store))) == 0


def test_what_killed_writes_left_is_taken_and_nothing_like_it(audited: Audited, collected):
    folder = audited.parts()[0].parent
    left = folder / f".{'0a' * 16}.tmp", audited.store / f"audits/demo/.{'ff' * 16}.tmp"
    others = folder / ".mine.tmp", folder / f"{'0a' * 16}.tmp", audited.store / f".{'0a' * 16}.tmp"
    for path in (*left, *others):
        path.write_bytes(b"half")
    assert collected(delete=True)[0] == set(), "a write that is under way has such a file"
    age(audited.store)
    assert collected(delete=True)[0] == {audited.name(path) for path in left}
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("moment", ["after the first listing", "before parts are deleted"])
def test_an_audit_that_begins_meanwhile_keeps_its_features(audited: Audited, monkeypatch, moment: str):
    """The audit `demo` stands aside, so its features are waste, and comes back at the worst moments."""
    age(audited.store)
    shutil.rmtree(audited.store / "audits/older")
    aside = audited.root / "live/aside"
    shutil.move(audited.store / "audits/demo", aside)
    (aside / "manifest.json").unlink()
    plain, calls = maintenance.audits_of, 0

    def listed(store: Store) -> list[str]:
        nonlocal calls
        calls += 1
        if aside.exists() and calls == (2 if moment == "after the first listing" else 3):
            shutil.move(aside, audited.store / "audits/demo")
        return plain(store)

    monkeypatch.setattr(maintenance, "audits_of", listed)
    before = set(audited.written())
    assert gc(GcConfig(store=str(audited.store), delete=True)) == 0
    gone = before - set(audited.written())
    assert calls > 2
    assert not any("/parts/" in name for name in gone), "a part went that the new audit needs"
    assert bool(gone) == (moment == "before parts are deleted"), "only records were to go before the audit began"
    assert audited.run("demo") == 0
    assert {audited.name(p): v for p in audited.parts() if (v := p.stat().st_mtime) > LONG_AGO + 1} == {}, (
        "gradient work"
    )
    assert verify(VerifyConfig(store=str(audited.store))) == 0


MOMENTS = {
    "before its manifest": AtDelete("*/older/manifest.json"),
    "between its manifest and the rest": AtDelete("*/older/manifest.json", after=True),
    "in the middle of its results": AtDelete("*/older/metrics.json"),
    "between plan and settings": AtDelete("*/older/plan.parquet", after=True),
    "when all is gone but the mark": AtDelete("*/older/audit.yaml", after=True),
}


@pytest.fixture
def killed(audited: Audited, tmp_path):
    """Run `jobs.gc delete=true keep=1` until it is killed while it removes the audit `older`."""

    def run(fault: AtDelete) -> None:
        age(audited.store)
        manifest = audited.store / "audits/older/manifest.json"
        manifest.write_text(manifest.read_text().replace('"finished": "20', '"finished": "19'))
        age(audited.store)
        driver = drive([f"store={audited.store}", "delete=true", "keep=1"], tmp_path / "log", fault, verb="gc")
        assert driver.wait() == -signal.SIGKILL, f"it ended before it could be killed: {driver.said}"

    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_gc_began_to_remove_the_next_finishes(audited: Audited, collected, killed, capsys, moment: str):
    features = set(audited.written())
    killed(MOMENTS[moment])
    status(StatusConfig(store=str(audited.store)))
    assert "older: being removed by jobs.gc" in capsys.readouterr().out
    assert verify(VerifyConfig(store=str(audited.store))) == 0, "what is half gone is no damage"
    names, _ = collected(delete=True)
    assert names, "the audit that was given up counts as alive"
    assert all(name.startswith("audits/older/") for name in names)
    assert not list((audited.store / "audits/older").rglob("*.*")), "something of it is left"
    assert set(audited.written()) == features, "features went that the audit `demo` names"
    assert audited.run("demo") == 0
    assert collected(delete=True)[0] == set()


@pytest.mark.soak
@pytest.mark.parametrize("moment", list(MOMENTS)[:4])
def test_an_audit_that_a_killed_gc_was_removing_can_be_resumed_and_then_stays(
    audited: Audited, collected, killed, moment: str
):
    killed(MOMENTS[moment])
    assert audited.run("older", "damping=10") == 0
    age(audited.store)
    assert collected(delete=True)[0] == set(), "gc took an audit that was wanted again"
    assert verify(VerifyConfig(store=str(audited.store))) == 0


def test_gram_nodes_are_those_that_an_audit_writes(audited: Audited):
    assert set(gram_nodes(read_plan(audited.audit("demo")))) == {gram.stem for gram in audited.grams()}


def test_what_was_given_up_and_what_is_too_old_goes_by_days(audited: Audited, collected):
    """Everything was written three days ago: `demo` never ended, `older` is the newest that did."""
    unfinish(audited, "demo")
    age(audited.store)
    assert collected(days=1)[0] == collected(unfinished_days=4)[0] == set()
    names, _ = collected(unfinished_days=2, delete=True)
    assert names
    assert all(name.startswith("audits/demo/") for name in names), "the features are those of `older` as well"
    assert audited.run("demo") == 0
    age(audited.store)
    names, _ = collected(days=2)
    assert {name.split("/")[1] for name in names} == {"older"}


def test_the_command_line():
    assert configure(GcConfig, "gc", ["delete=true", "grace_hours=1", "keep=3"]) == GcConfig("results", True, 1.0, 3)
    days = configure(GcConfig, "gc", ["days=90", "unfinished_days=30"])
    assert days.rules(1e9) == Retention(1e9 - 48 * 3600, 0, 1e9 - 90 * 86400, 1e9 - 30 * 86400, 1e9)
    with pytest.raises(ValueError, match="keep=-1; expected at least 0"):
        configure(GcConfig, "gc", ["keep=-1"])
