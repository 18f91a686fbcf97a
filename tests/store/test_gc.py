"""What nothing needs: by who names it and by age, whatever storage holds it."""

import os
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from concept_trak.store import manifest
from concept_trak.store.gc import (
    Garbage,
    Needed,
    Retention,
    audit_files,
    expired_audits,
    needed_by,
    remove_garbage,
    temporary_files,
    unneeded_features,
)
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit
from concept_trak.store.records import commit_part
from concept_trak.store.store import Store
from tests.store.parts import a_part
from tests.store.test_s3 import endpoint, server  # noqa: F401  (fixtures: an S3 server and an empty bucket)

LATER = time.time() + 3600  # everything is older than this


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path):
    if request.param == "folder":
        yield Store(str(tmp_path))
    elif request.param == "s3":
        request.getfixturevalue("endpoint")
        yield Store("s3://bucket/deep/prefix")
    else:
        yield Store(f"memory://{request.node.name}")
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


def plan(*shards: str) -> list[dict]:
    return [{"shard": s, "source": "a", "version": "1", "first_row": 20 * i, "rows": 20} for i, s in enumerate(shards)]


def begun(store: Store, name: str, fp: str, *shards: str) -> Audit:
    audit = Audit(store, name)
    manifest.begin_audit(audit, {"fingerprints": {"m": fp}}, plan(*shards))
    return audit


def one_gram(rows) -> list[str]:
    """All shards in one group, named by them."""
    return ["-".join(row["shard"] for row in rows)]


def filled(store: Store, fp: str, *shards: str) -> set[str]:
    for shard in shards:
        commit_part(store, a_part(n=2, k=2, shard=shard, fingerprint=fp), "float16", "binary", 1.0, 1, "host")
    gram, described = FeatureSet(fp).gram("-".join(shards)), f"features/{fp}/feature_set.json"
    store.create(gram, b"gram")
    store.create(described, b"{}")
    return {gram, described, *(f(shard) for shard in shards for f in (FeatureSet(fp).part, FeatureSet(fp).record))}


def waste(store: Store, *living: Audit, before: float = LATER) -> set[str]:
    kept = Needed.union(needed_by(audit, one_gram) for audit in living)
    return {w.name for w in unneeded_features(store, store.names("features"), kept, before)}


def test_modified_is_when_a_file_was_last_written(store: Store):
    assert store.modified("features/a") is None
    start = time.time()
    store.create("features/a", b"1")
    written = store.modified("features/a")
    assert written is not None
    assert start - 2 < written < time.time() + 2, "not in unix seconds of this clock (S3 counts whole seconds)"
    assert written == store.modified("features/a")
    time.sleep(1.1)
    store.replace("features/a", b"2")
    assert store.modified("features/a") - written > 0.5
    assert store.stat("features/a") == (1, store.modified("features/a"))
    assert store.stat("features") is None, "a folder is no file"
    assert store.stats("features") == {"features/a": store.stat("features/a")}
    assert store.stats("nothing") == {}


def test_modified_is_the_files_own_time(tmp_path):
    store = Store(str(tmp_path))
    store.create("a/b", b"1")
    os.utime(tmp_path / "a/b", (1e9, 1e9))
    assert store.modified("a/b") == 1e9
    assert store.modified("a") is None, "a folder is no file"


def test_leftovers_are_the_temporary_files_of_this_project_alone(tmp_path):
    store = Store(f"file://{tmp_path}")
    for name in (f"features/f/.{'0' * 32}.tmp", "features/f/.other.tmp", f"audits/.{'a' * 32}.tmp", f".{'b' * 32}.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    assert store.names("") == []
    assert {w.name for w in temporary_files(store, LATER)} == {f"features/f/.{'0' * 32}.tmp", f"audits/.{'a' * 32}.tmp"}
    assert temporary_files(store, 0.0) == []
    assert temporary_files(Store("memory://leftovers"), LATER) == []


def test_what_living_audits_name_stays_and_all_else_goes(store: Store):
    both, other = filled(store, "aaaa", "s1", "s2"), filled(store, "bbbb", "s1")
    store.create("features/aaaa/notes/parts/x.parquet", b"somebody's own")
    first = begun(store, "first", "aaaa", "s1", "s2")
    assert waste(store, first) == other
    assert waste(store, begun(store, "second", "bbbb", "s1"), first) == set()
    shorter = begun(store, "shorter", "aaaa", "s1")
    assert waste(store, shorter) == other | {
        FeatureSet("aaaa").part("s2"),
        FeatureSet("aaaa").record("s2"),
        FeatureSet("aaaa").gram("s1-s2"),
    }
    described = "features/aaaa/feature_set.json"
    assert waste(store) == (both | other) - {described}, "somebody's own file stays, and so does what tells of its set"
    assert waste(store, before=0.0) == set(), "everything is young"


def test_an_audit_without_a_plan_keeps_all_of_its_feature_sets(store: Store):
    filled(store, "aaaa", "s1")
    other = filled(store, "bbbb", "s1")
    audit = begun(store, "demo", "aaaa", "other")
    store.delete(audit.name("plan.parquet"))
    assert waste(store, audit) == other
    store.delete(audit.name("audit.yaml"))
    assert needed_by(audit, one_gram) == Needed(), "no audit was begun in that folder"


def test_an_audit_of_which_nobody_can_tell_what_it_needs_is_an_error(store: Store):
    audit = begun(store, "demo", "aaaa", "s1")
    store.replace(audit.name("plan.parquet"), b"PAR1")
    with pytest.raises(ValueError, match=r"demo needs is unknown: .*plan.parquet is damaged.*remove .*audits/demo/ if"):
        needed_by(audit, one_gram)
    store.replace(audit.name("plan.parquet"), b"PAR1")
    store.delete(audit.name("audit.yaml"))
    with pytest.raises(ValueError, match=r"audit demo needs"):
        needed_by(audit, one_gram)


def test_expired_are_the_oldest_finished(store: Store):
    audits = [begun(store, name, "aaaa", "s1") for name in ("unfinished", "b", "a", "c", "unreadable")]
    for audit, day in zip(audits[1:4], (2, 1, 3), strict=True):
        finished = f"2026-01-0{day}T00:00:00+00:00"
        manifest.write_json(audit, "manifest.json", {"finished": finished, "settings": {}, "files": {}, "parts": []})
    manifest.write_bytes(audits[4], "manifest.json", b"{")

    def left(keep: int, before: float = LATER, **more: float) -> list[str]:
        return [audit.id for audit in expired_audits(audits, Retention(before, keep, **more))]

    assert left(1) == ["b", "a"]
    assert left(2) == ["a"]
    assert left(3) == left(0) == []
    assert left(1, 0.0) == [], "they are young"
    assert left(0, finished=LATER) == ["b", "a"], "the newest stays, however old"
    assert left(2, finished=LATER) == ["a", "b"], "each rule takes its own, and none twice"
    assert left(0, 0.0, finished=LATER) == left(0, finished=0.0) == []
    assert left(0, unfinished=LATER) == ["unfinished"], "a manifest that is damaged is one all the same"
    assert left(0, unfinished=0.0) == left(0, 0.0, unfinished=LATER) == []
    audits[0].store.create(audits[0].name(manifest.GIVEN_UP), b"{}")
    assert left(0) == ["unfinished"], "a gc was killed while it removed this one"
    assert left(0, 0.0) == [], "it was begun again since"
    assert left(2) == ["unfinished", "a"]


def test_the_age_of_the_mark_does_not_count(tmp_path):
    store = Store(str(tmp_path))
    audit = begun(store, "demo", "aaaa", "s1")
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    store.create(audit.name(manifest.GIVEN_UP), b"{}")
    assert expired_audits([audit], Retention(1e9 + 1)) == [audit], "what a killed gc left would stay for another grace"


def test_an_audit_that_is_begun_again_while_it_is_removed_keeps_what_is_left(store: Store):
    audit = begun(store, "demo", "aaaa", "s1")
    for name in ("manifest.json", "a.json", "b.json"):
        manifest.write_bytes(audit, name, b"{}")

    removal = remove_garbage(store, audit_files(audit), Needed)
    assert next(removal).name == audit.name("manifest.json")
    begun(store, "demo", "aaaa", "s1")
    assert list(removal) == []
    assert store.names("audits") == [audit.name(n) for n in ("a.json", "audit.yaml", "b.json", "plan.parquet")]


def test_an_unfinished_audit_is_marked_before_it_goes_too(store: Store):
    audit = begun(store, "demo", "aaaa", "s1")
    removal = remove_garbage(
        store, audit_files(audit), lambda: pytest.fail("every audit is read to remove the files of one")
    )
    assert next(removal).name == audit.name("plan.parquet")
    assert manifest.given_up(audit), "killed now, the next gc would not know that it is to go"
    assert [w.name for w in removal] == [audit.name("audit.yaml")]
    assert store.names("audits") == []


def test_a_marked_audit_that_is_begun_again_before_it_is_its_turn_stays(store: Store):
    audit = begun(store, "demo", "aaaa", "s1")
    store.create(audit.name(manifest.GIVEN_UP), b"{}")
    listed = audit_files(audit)
    begun(store, "demo", "aaaa", "s1")
    assert list(remove_garbage(store, listed, Needed)) == []


def test_things_go_in_the_order_that_leaves_no_lie(store: Store):
    filled(store, "aaaa", "s1", "s2")
    audit = begun(store, "old", "bbbb", "s1")
    for name in ("manifest.json", "a.json", "m/scores/x.parquet"):
        manifest.write_bytes(audit, name, b"{}")
    found = [*unneeded_features(store, store.names("features"), Needed(), LATER), *audit_files(audit)]
    gone = [w.name for w in remove_garbage(store, found, Needed)]
    assert gone[:5] == [
        audit.name(n) for n in ("manifest.json", "a.json", "m/scores/x.parquet", "plan.parquet", "audit.yaml")
    ]
    assert gone[5:7] == [FeatureSet("aaaa").record("s1"), FeatureSet("aaaa").record("s2")]
    assert gone[-1] == "features/aaaa/feature_set.json"
    assert store.names("") == []


def test_what_became_needed_meanwhile_stays(store: Store):
    names = filled(store, "aaaa", "s1") | filled(store, "bbbb", "s1")
    found = unneeded_features(store, store.names("features"), Needed(), LATER)
    assert {w.name for w in found} == names
    features = FeatureSet("aaaa")
    needed = Needed(frozenset({features.part("s1"), features.settings_file}))
    looks = iter([Needed(), *[needed] * 9])
    gone = {w.name for w in remove_garbage(store, found, lambda: next(looks))}
    assert names - gone == set(store.names("")) == needed.names


def test_bytes_are_those_of_the_files(store: Store):
    store.create("features/aaaa/parts/x.parquet", b"12345")
    assert unneeded_features(store, store.names("features"), Needed(), LATER) == [
        Garbage("part", "features/aaaa/parts/x.parquet", 5)
    ]
