"""What is written down decides: a part against its record, both against the manifest, on a folder and in memory."""

import dataclasses
import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from concept_trak.store import manifest
from concept_trak.store.codec import encode_part
from concept_trak.store.grams import write_gram
from concept_trak.store.identity import FeatureSet, fingerprint, open_feature_set
from concept_trak.store.manifest import Audit
from concept_trak.store.records import commit_part, derive_record
from concept_trak.store.store import Store
from concept_trak.store.verify import Finding, verify_audits
from tests.store.parts import a_part

SETTINGS = {"seed": 0}
FP = fingerprint(SETTINGS)
SHARDS = ("a-0", "a-1")
PLAN = [
    {"shard": name, "source": "a.parquet", "version": "v1", "first_row": 20 * i, "rows": 20}
    for i, name in enumerate(SHARDS)
]
PART, RECORD, GRAM = FeatureSet(FP).part("a-0"), FeatureSet(FP).record("a-0"), FeatureSet(FP).gram("g")


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path):
    if request.param == "folder":
        yield Store(str(tmp_path))
    else:
        yield Store(f"memory://{request.node.name}")
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def audit(store: Store) -> Audit:
    """A finished audit of two parts and a Gram."""
    made = begun(store)
    records = [commit_part(store, part(name), "float16", "binary", 1.0, 1, "host") for name in SHARDS]
    write_gram(store, FeatureSet(FP), "g", part("a-0").phi.T @ part("a-0").phi, 20)
    manifest.write_bytes(made, "report.html", b"<html>" * 9)
    manifest.finish_audit(made, ["audit.yaml", "plan.parquet", "report.html"], records, {"fingerprints": {"m": FP}})
    return made


def begun(store: Store, name: str = "demo") -> Audit:
    open_feature_set(store, SETTINGS, 20)
    manifest.begin_audit(Audit(store, name), {"damping": 1.0, "fingerprints": {"m": FP}}, PLAN)
    return Audit(store, name)


def part(shard: str, seed: int = 0):
    return a_part(shard=shard, fingerprint=FP, seed=seed)


def wrong(*audits: Audit, **only) -> set[tuple[str, str]]:
    return {(f.name, f.what) for f in verify_audits(audits, **only) if f.what != "sound"}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_file_is_looked_at_once(audit: Audit):
    found = list(verify_audits([audit, audit]))
    assert {f.what for f in found} == {"sound"}
    names = [f.name for f in found]
    assert len(names) == len(set(names))
    looked_at_with_another = {RECORD, FeatureSet(FP).record("a-1"), "audits/latest.json", "audits/demo/manifest.json"}
    assert set(names) | looked_at_with_another == set(audit.store.names(""))


@pytest.mark.parametrize("finished", [True, False])
def test_any_flipped_byte_of_a_part_is_found(audit: Audit, finished: bool):
    """Also where no page checksum reaches, and without a manifest."""
    if not finished:
        audit.store.delete(audit.name("manifest.json"))
    data = audit.store.read(PART)
    for at in range(0, len(data), 97):
        audit.store.replace(PART, flipped(data, at))
        assert wrong(audit) == {(PART, "altered")}, f"byte {at} of {len(data)}"


def test_any_altered_number_of_a_record_is_found(audit: Audit):
    data = audit.store.read(RECORD)
    told = json.loads(data)
    for key in set(told) - {"seconds", "attempt", "host"}:  # of these nothing else knows
        value = told[key]
        other = {} if isinstance(value, dict) else value + 1 if isinstance(value, int | float) else "0" + value[1:]
        if other == value:
            other = "1" + value[1:]
        audit.store.replace(RECORD, json.dumps(told | {key: other}).encode())
        assert wrong(audit) == {(RECORD, "altered")}, f"{key}: the manifest vouches for the part"
    for other in (b"", b"[]", data[:-9]):
        audit.store.replace(RECORD, other)
        assert wrong(audit) == {(RECORD, "altered")}


# (part, record, finished): what is wrong with them; parts and records are sound, altered, "recomputed" or gone.
CASES = {
    ("sound", "sound", True): set(),
    ("sound", "gone", True): {(PART, "part without record")},
    ("sound", "gone", False): set(),
    ("sound", "altered", True): {(RECORD, "altered")},
    ("sound", "altered", False): {(RECORD, "altered")},
    ("altered", "sound", True): {(PART, "altered")},
    ("altered", "gone", True): {(PART, "altered")},
    ("altered", "gone", False): {(PART, "altered")},
    ("altered", "altered", True): {(PART, "altered"), (RECORD, "altered")},
    ("truncated", "sound", True): {(PART, "truncated")},
    ("truncated", "sound", False): {(PART, "truncated")},
    ("truncated", "gone", True): {(PART, "truncated")},
    ("gone", "sound", True): {(RECORD, "record without part")},
    ("gone", "sound", False): {(RECORD, "record without part")},
    ("gone", "gone", True): {(PART, "missing")},
    ("gone", "gone", False): set(),
    ("recomputed", "its own", True): {(PART, "recomputed since")},
    ("recomputed", "its own", False): set(),
    ("recomputed", "sound", True): {(PART, "altered")},
    ("recomputed", "sound", False): {(PART, "altered")},
    ("recomputed", "gone", True): {(PART, "altered")},
    ("recomputed", "gone", False): set(),
    ("recomputed", "altered", True): {(PART, "altered"), (RECORD, "altered")},
}


@pytest.mark.parametrize(("case", "expected"), CASES.items(), ids=[" ".join(map(str, case)) for case in CASES])
def test_who_is_believed(audit: Audit, case: tuple[str, str, bool], expected: set[tuple[str, str]]):
    (what, record, finished), store = case, audit.store
    data = store.read(PART)
    recomputed = encode_part(part("a-0"), group_bytes=1 << 8)  # the same rows as other bytes
    assert len(recomputed) > len(data)
    contents = {"altered": flipped(data, 200), "truncated": data[:-50], "recomputed": recomputed, "sound": data}
    if record != "sound":
        store.delete(RECORD)
    store.delete(PART)
    if what != "gone":
        store.create(PART, contents[what])
    if record == "altered":
        store.create(RECORD, b"{")
    if record == "its own":
        derive_record(store, FeatureSet(FP), "a-0")
    if not finished:
        store.delete(audit.name("manifest.json"))
    assert wrong(audit) == expected


def test_a_part_of_another_shard_or_feature_set_is_altered(audit: Audit):
    for other in (part("a-1"), dataclasses.replace(part("a-0"), fingerprint="beef")):
        audit.store.delete(RECORD)
        audit.store.replace(PART, encode_part(other))
        assert {name for name, _ in wrong(audit)} == {PART}


def test_grams_files_and_feature_sets(audit: Audit):
    store = audit.store
    report, described = audit.name("report.html"), f"features/{FP}/feature_set.json"
    for name, at in ((GRAM, -9), (report, 9), (described, store.read(described).index(b"0\n  }"))):
        data = store.read(name)
        store.replace(name, flipped(data, at % len(data)))
        assert wrong(audit) == {(name, "altered")}
        store.replace(name, data[:-9])
        assert {found for found, _ in wrong(audit)} == {name}
        store.replace(name, data)
    assert wrong(audit) == set()
    store.delete(GRAM)
    assert wrong(audit) == set(), "a Gram that is missing is summed when it is needed"
    store.delete(report)
    store.delete(described)
    assert wrong(audit) == {(report, "missing"), (described, "missing")}


def test_a_recomputed_part_names_the_audits_that_list_the_old_one(audit: Audit):
    store, late = audit.store, begun(audit.store, "late")
    store.delete(RECORD)
    store.replace(PART, encode_part(part("a-0"), group_bytes=1 << 8))
    records = [derive_record(store, FeatureSet(FP), name) for name in SHARDS[:1]]
    manifest.finish_audit(late, ["audit.yaml", "plan.parquet"], records, {"fingerprints": {"m": FP}})
    (finding,) = (f for f in verify_audits([audit, late]) if f.what != "sound")
    assert finding == Finding(PART, "recomputed since", "demo")
    assert not finding.damage, "the part agrees with its record"


def test_what_describes_an_audit_may_be_unreadable(audit: Audit):
    store = audit.store
    store.replace(audit.name("manifest.json"), b"{")
    assert wrong(audit) == {(audit.name("manifest.json"), "altered")}
    store.delete(audit.name("manifest.json"))
    plan = store.read(audit.name("plan.parquet"))
    store.replace(audit.name("plan.parquet"), plan[: len(plan) // 2])
    assert wrong(audit) == {(audit.name("plan.parquet"), "altered")}
    store.delete(audit.name("plan.parquet"))
    assert wrong(audit) == set(), "killed between settings and plan: nothing is wrong"
    store.replace(audit.name("audit.yaml"), b"fingerprints: [")
    assert wrong(audit) == {(audit.name("audit.yaml"), "altered")}
    store.delete(audit.name("audit.yaml"))
    store.create(audit.name("progress.json"), b"{}")
    assert wrong(audit) == {(audit.name("audit.yaml"), "missing")}


def test_only_some_names_are_looked_at(audit: Audit):
    store = audit.store
    for name in (PART, GRAM):
        store.replace(name, flipped(store.read(name), 150))
    store.delete(audit.name("report.html"))
    assert wrong(audit, only={PART}) == {(PART, "altered")}
    assert [f.name for f in verify_audits([audit], {FeatureSet(FP).record("a-1")})] == [FeatureSet(FP).part("a-1")]
