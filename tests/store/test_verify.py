"""What is written down decides: a part against its record, both against the manifest, on a folder and in memory."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from fsspec.implementations.memory import MemoryFileSystem

from concept_trak import UserError
from concept_trak.store import codec, manifest
from concept_trak.store.checked_safetensors import with_checksum
from concept_trak.store.codec import decode_blocks, encode_part
from concept_trak.store.compaction import committed
from concept_trak.store.consistency import ExpectedGram
from concept_trak.store.grams import encode_gram, read_gram, write_gram
from concept_trak.store.identity import FeatureSet, fingerprint, open_feature_set
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Block, Damaged
from concept_trak.store.queries import StoredQuery, write_query
from concept_trak.store.records import commit_part, derive_record, find_record
from concept_trak.store.store import Store
from concept_trak.store.verify import Finding, verify_audits
from tests.store.parts import a_part, planned

SETTINGS = {"seed": 0}
FP = fingerprint(SETTINGS)
SHARDS = ("a-0", "a-1")
PLAN = [
    {"shard": name, "source": "a.parquet", "version": "v1", "first_row": 22 * i, "rows": 22}
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
    return a_part(shard=shard, fingerprint=FP, seed=seed, first_row=22 * SHARDS.index(shard))


def wrong(*audits: Audit, **only) -> set[tuple[str, str]]:
    return {(f.name, f.what) for f in verify_audits(audits, gram_nodes, **only) if f.what != "sound"}


def gram_nodes(plan) -> dict[str, list[str]]:
    """One Gram, over the first shard alone."""
    return {"g": [row["shard"] for row in plan[:1]]} if plan else {}


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_file_is_looked_at_once(audit: Audit):
    found = list(verify_audits([audit, audit], gram_nodes))
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
    (finding,) = (f for f in verify_audits([audit, late], gram_nodes) if f.what != "sound")
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
    assert [f.name for f in verify_audits([audit], gram_nodes, {FeatureSet(FP).record("a-1")})] == [
        FeatureSet(FP).part("a-1")
    ]


def forged(change: str):
    """A part that this project cannot have written for the plan, as its bytes with a footer of their own."""
    sound = part("a-0")
    match change:
        case "fewer rows":
            return dataclasses.replace(sound, ids=sound.ids[:5], weight=sound.weight[:5], phi=sound.phi[:5])
        case "one id twice":
            return dataclasses.replace(sound, ids=(sound.ids[1], *sound.ids[1:]))
        case "a reject's id":
            return dataclasses.replace(sound, ids=("reject-0", *sound.ids[1:]))
        case "a row of another shard":
            rejects = tuple(dataclasses.replace(reject, row=reject.row + 880) for reject in sound.rejects)
            return dataclasses.replace(sound, rejects=rejects)
        case "one row twice":
            rejects = (sound.rejects[0], dataclasses.replace(sound.rejects[1], row=sound.rejects[0].row))
            return dataclasses.replace(sound, rejects=rejects)
    raise AssertionError(change)


def poisoned(monkeypatch, column: str, value: float) -> bytes:
    """The bytes of a part with one number that no feature has."""
    encode = codec._table

    def table(part, rows, encoding):
        changed = {name: getattr(rows, name).copy() for name in ("weight", "scale", "unit")}
        changed[column].reshape(-1)[0] = value
        return encode(part, Block(rows.ids, **changed), encoding)

    with monkeypatch.context() as patch:
        patch.setattr(codec, "_table", table)
        return encode_part(part("a-0"))


FORGED = {
    "fewer rows": "it has 5 rows and 2 rejects; the plan has 22 rows",
    "one id twice": "1 sample ids occur twice",
    "a reject's id": "1 sample ids occur twice",
    "a row of another shard": "it rejects row 900 of a.parquet, which is not in the shard's plan",
    "one row twice": "it rejects one row twice",
}
POISONED = [("weight", np.inf), ("weight", np.nan), ("scale", np.nan), ("scale", -1.0), ("unit", np.nan),
            ("unit", -np.inf)]  # fmt: skip


def write_with_its_record(store: Store, data: bytes, monkeypatch) -> None:
    """The part, and a record that agrees with it as far as anybody can tell."""
    store.replace(PART, data)
    footer = codec.decode_footer(data)
    record = json.loads(store.read(RECORD)) | {
        "rows": footer.rows, "rejected": len(footer.rejects), "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "sum_squares": footer.sum_squares,
        "rejects_by_reason": {"x": len(footer.rejects)} if footer.rejects else {},
    }  # fmt: skip
    if not np.isfinite(record["sum_squares"]):
        record["sum_squares"] = 1.0
    store.replace(RECORD, json.dumps(record).encode())


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", FORGED)
def test_a_part_that_contradicts_the_plan_is_altered_though_its_record_agrees(
    audit: Audit, change: str, finished: bool, monkeypatch
):
    if not finished:
        audit.store.delete(audit.name("manifest.json"))
    write_with_its_record(audit.store, encode_part(forged(change)), monkeypatch)
    (finding,) = (f for f in verify_audits([audit], gram_nodes) if f.name == PART)
    assert (finding.what, finding.why) == ("altered", FORGED[change])


@pytest.mark.parametrize(("column", "value"), POISONED)
def test_a_part_with_numbers_that_are_not_finite_is_altered(audit: Audit, column: str, value: float, monkeypatch):
    write_with_its_record(audit.store, poisoned(monkeypatch, column, value), monkeypatch)
    (finding,) = (f for f in verify_audits([audit], gram_nodes) if f.name == PART)
    assert finding.what == "altered"
    assert "finite" in finding.why


@pytest.mark.parametrize("change", ["fewer rows", "one id twice", "a reject's id", "one row twice"])
def test_a_part_that_contradicts_the_plan_is_neither_adopted_nor_recorded(tmp_path, change: str):
    store, features = Store(str(tmp_path)), FeatureSet(FP)
    store.create(PART, encode_part(forged(change)))
    with (
        pytest.raises(Damaged, match=r"parts/a-0.parquet.*repair=true")
        if change != "fewer rows"
        else pytest.raises(UserError, match=r"20 rows .* 2 rejects")
    ):
        commit_part(store, part("a-0"), "float16", "binary", 1.0, 1, "host")
    (shard,) = planned("a-0")
    for read in (lambda: find_record(store, features, shard), lambda: committed(store, features, [shard])):
        with pytest.raises(Damaged, match=r"parts/a-0.parquet: .*repair=true"):
            read()
    assert store.size(RECORD) is None, "a record vouches for a part that cannot be right"


def test_a_record_that_contradicts_the_plan_is_named(audit: Audit):
    record = json.loads(audit.store.read(RECORD))
    (shard,) = planned("a-0")
    for change, message in (
        ({"rows": 5}, "has 5 rows and 2 rejects; the plan has 22 rows"),
        ({"rejected": 0, "rejects_by_reason": {}}, "has 20 rows and 0 rejects"),
        ({"rejected": 3}, "3 rejects, and reasons for another number"),
        ({"sum_squares": float("nan")}, "sum_squares is nan"),
        ({"rows": -1}, "no whole number"),
    ):
        audit.store.replace(RECORD, json.dumps(record | change).encode())
        with pytest.raises(Damaged, match=rf"commits/a-0.json .*{message}.*repair=true"):
            committed(audit.store, FeatureSet(FP), [shard])
        assert (RECORD, "altered") in wrong(audit)


@pytest.mark.parametrize("change", ["another sum", "another count", "not finite"])
def test_a_gram_that_contradicts_its_parts_is_altered_though_its_checksum_agrees(audit: Audit, change: str):
    phi = part("a-0").phi
    k_matrix, count = phi.T @ phi, 20
    if change == "another sum":
        k_matrix *= 1.01
    elif change == "another count":
        count = 19
    data = encode_gram(k_matrix, count)
    if change == "not finite":
        k_matrix[0, 0] = np.nan
        data = with_checksum(safetensors.numpy.save({"K": k_matrix}, {"count": "20", "trace": "1.0"}))
    audit.store.replace(GRAM, data)
    assert wrong(audit) == {(GRAM, "altered")}
    expected = ExpectedGram("g", 20, float(np.square(phi, dtype=np.float64).sum()))
    with pytest.raises(Damaged, match=r"grams/g.safetensors: .*repair=true"):
        read_gram(audit.store, FeatureSet(FP), "g", expected)


def test_rounding_of_every_kind_of_storage_is_within_the_tolerance_of_the_trace(tmp_path):
    for dtype in ("float16", "float32", "int8"):
        store = Store(str(tmp_path / dtype))
        record = commit_part(store, part("a-0"), dtype, "binary", 1.0, 1, "host")
        blocks = list(decode_blocks(store.read(PART)))
        phi = np.concatenate([block.phi() for block in blocks]).astype(np.float64)
        ExpectedGram("g", record.rows, record.sum_squares).require((phi.T @ phi).astype(np.float32), record.rows)


def test_a_query_of_an_unfinished_audit_is_checked(audit: Audit):
    vector = np.ones(3, np.float32)
    query = StoredQuery(
        concept="red", method="m", phi=vector, solved=vector * np.nan,
        residual=0.0, lam=1.0, spread_solved=1.0, spread_phi=1.0,
    )  # fmt: skip
    audit.store.delete(audit.name("manifest.json"))
    write_query(audit, query)
    name = audit.name("m/queries/red.parquet")
    (finding,) = (f for f in verify_audits([audit], gram_nodes) if f.what != "sound")
    assert (finding.name, finding.what) == (name, "altered")
    assert "not finite" in finding.why
    audit.store.delete(name)
    write_query(audit, dataclasses.replace(query, solved=vector))
    assert wrong(audit) == set()
    write_query(audit, dataclasses.replace(query, concept="blue", solved=vector, lam=2.0))
    both = {(name, "altered"), (audit.name("m/queries/blue.parquet"), "altered")}
    assert wrong(audit) == both, "two systems solved them, and nothing tells which is this audit's"
