"""Records read in bulk: as those read one by one, whatever became of the single ones since."""

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest

from concept_trak.store import compaction
from concept_trak.store.compaction import RecordGatherer, committed, compacted_rows, read_compacted, write_compacted
from concept_trak.store.consistency import PlannedShard
from concept_trak.store.identity import FeatureSet, encode_json
from concept_trak.store.part import Damaged
from concept_trak.store.records import Record, commit_part, read_record
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, SOUND, verify_audits
from tests.store.parts import a_part, planned

FEATURES = FeatureSet("f00d")
NAMES = [f"s{i:02d}" for i in range(12)]


class Counting(Store):
    """Counts requests by kind."""

    requests: ClassVar[Counter[str]] = Counter()

    def read(self, name, start=None, end=None):
        self.requests["compacted" if "/records/" in name else "single" if "/commits/" in name else "other"] += 1
        return super().read(name, start, end)


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(compaction, "LEAST", 4)
    monkeypatch.setattr(compaction, "MOST", 5)
    monkeypatch.setattr(Counting, "requests", Counter())
    return Counting(str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}")


@pytest.fixture
def records(store) -> dict[str, Record]:
    return {name: commit(store, name) for name in NAMES}


def commit(store: Store, name: str, seed: int = 0, seconds: float = 1.0) -> Record:
    return commit_part(store, a_part(n=2, k=4, shard=name, seed=seed), "float32", "binary", seconds, 1, "host")


def shards(names=tuple(NAMES)) -> list[PlannedShard]:
    return planned(*names, rows=4)


def requests_of(store: Store) -> tuple[Counter[str], dict[str, Record]]:
    Counting.requests.clear()
    records = committed(store, FEATURES, shards())
    return Counter(Counting.requests), records


def naive(store: Store) -> dict[str, Record]:
    """The twin: every record by itself."""
    return {name: read_record(store, FEATURES, name) for name in NAMES}


def test_the_second_start_reads_a_file_for_many_records(store, records):
    first, read = requests_of(store)
    assert (first["single"], first["compacted"]) == (12, 0)
    second, again = requests_of(store)
    assert (second["single"], second["compacted"]) == (0, 3)
    assert list(again) == NAMES
    assert again == read == records == naive(store)


def test_a_record_that_was_made_anew_is_read_by_itself(store, records):
    requests_of(store)
    store.delete(FEATURES.record("s03"))
    store.delete(FEATURES.part("s03"))
    newer = commit(store, "s03", seed=9, seconds=77.0)
    requests, again = requests_of(store)
    assert requests["single"] == 1
    assert again["s03"] == newer != records["s03"]
    assert again == naive(store)


def test_a_record_that_is_gone_is_not_done(store, records):
    requests_of(store)
    store.delete(FEATURES.record("s03"))
    store.delete(FEATURES.part("s03"))
    assert "s03" not in committed(store, FEATURES, shards())


def test_a_part_that_is_gone_is_named_as_before(store, records):
    requests_of(store)
    store.delete(FEATURES.part("s03"))
    with pytest.raises(ValueError, match="1 of 12 shards have a record but no part"):
        committed(store, FEATURES, shards())


def test_records_are_held_against_the_plan_in_files_of_many_too(store, records):
    requests_of(store)
    with pytest.raises(Damaged, match=r"commits/s00.json has 2 rows and 2 rejects; the plan has 5 rows"):
        committed(store, FEATURES, planned(*NAMES, rows=5))


def test_a_damaged_file_is_not_used_and_named_by_verify(store, records, caplog):
    requests_of(store)
    name = store.names(FEATURES.compacted)[0]
    whole = store.read(name)
    for other in (whole[:-1], whole[:30] + bytes([whole[30] ^ 1]) + whole[31:], b""):
        store.replace(name, other)
        with pytest.raises(Damaged, match="not the digest of its bytes"):
            compacted_rows(store, name)
        assert committed(store, FEATURES, shards()) == naive(store)
        assert "its records are read one by one" in caplog.text


def test_few_records_make_no_file(store):
    for name in NAMES[:3]:
        commit(store, name)
    committed(store, FEATURES, shards())
    assert store.names(FEATURES.compacted) == []


def test_a_run_writes_what_it_gathered_a_file_at_a_time(store, records):
    gatherer = RecordGatherer(store, FEATURES)
    counts = []
    for record in records.values():
        gatherer.add(record)
        counts.append(len(store.names(FEATURES.compacted)))
    gatherer.finish()
    assert (counts[4], counts[9], counts[-1]) == (1, 2, 2), "what is left, two, is few"
    requests, again = requests_of(store)
    assert requests["single"] == 2
    assert again == records


def test_the_listings_of_a_run_cost_a_few_times_the_last_one(store, records, monkeypatch):
    gatherer, sizes = RecordGatherer(store, FEATURES), list[int]()
    monkeypatch.setattr(compaction, "write_compacted", lambda store, features, some: sizes.append(len(some)))
    for _ in range(1000):
        gatherer.add(next(iter(records.values())))
    gatherer.finish()
    assert sizes == [5, 5, 10, 20, 40, 80, 160, 320, 360]
    assert sum(sum(sizes[: i + 1]) for i in range(len(sizes))) < 3 * 1000, "each write lists all records so far"


def test_the_same_records_make_the_same_file(store, records):
    versions = store.versions(FEATURES.records)
    for _ in range(2):
        write_compacted(store, FEATURES, records.values(), versions)
        assert len(store.names(FEATURES.compacted)) == 3


def test_many_files_are_written_again_as_full_ones(store, records, monkeypatch):
    versions = store.versions(FEATURES.records)
    for record in records.values():
        write_compacted(store, FEATURES, [record], versions)
    assert len(store.names(FEATURES.compacted)) == 12
    monkeypatch.setattr(compaction, "MANY", 11)
    assert {r.shard: r for r in read_compacted(store, FEATURES, versions)} == records
    assert len(store.names(FEATURES.compacted)) == 3
    assert requests_of(store)[0]["compacted"] == 3


def test_storage_without_versions_is_read_one_by_one(store, records, monkeypatch):
    monkeypatch.setattr(Counting, "versions", lambda self, folder: dict.fromkeys(self.names(folder), ""))
    for _ in range(2):
        requests, again = requests_of(store)
        assert requests["single"] == 12
        assert again == records
    assert store.names(FEATURES.compacted) == []


def test_verify_holds_them_against_the_single_records(store, records):
    from tests.store.test_verify import gram_nodes

    requests_of(store)
    audit = audit_over(store)
    names = store.names(FEATURES.compacted)
    findings = {f.name: f.what for f in verify_audits([audit], gram_nodes) if f.name in names}
    assert findings == dict.fromkeys(names, SOUND)
    versions = store.versions(FEATURES.records)
    stale = [replace(records["s05"], attempt=7)]
    write_compacted(store, FEATURES, stale, versions)
    (name,) = set(store.names(FEATURES.compacted)).difference(names)
    (finding,) = (f for f in verify_audits([audit], gram_nodes) if f.name == name)
    assert (finding.what, finding.why) == (ALTERED, "its record of s05 differs from features/f00d/commits/s05.json")


def audit_over(store: Store):
    """An unfinished audit that names these features and shards."""
    from concept_trak.store.manifest import Audit, begin_audit

    store.create(FEATURES.settings_file, encode_json({"settings": {}, "shard_rows": 4}))
    rows = [{"shard": s.name, "source": s.source, "version": "v", "first_row": 0, "rows": 4} for s in shards()]
    begin_audit(Audit(store, "a"), {"fingerprints": {"m": FEATURES.fingerprint}}, rows)
    return Audit(store, "a")
