"""Features that are kept between questions: the same blocks from memory, from a file and from the store."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from concept_trak import UserError
from concept_trak.audit import worker
from concept_trak.audit.kept_features import KeepingBudget, KeptFeatures, memory_of
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.config import AuditConfig
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Block, Damaged, Part
from concept_trak.store.records import Record, commit_part
from concept_trak.store.store import Store

K, ROWS, PARTS = 9, 7, 3


@pytest.fixture(scope="module", params=["int8", "float16"])
def features(request, tmp_path_factory) -> tuple[StoreWorker, list[Record]]:
    """Parts of one, two and three row groups, and ids of several alphabets."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    store, records = Store(str(folder)), []
    for i in range(PARTS):
        rows = ROWS * (i + 1)
        ids = tuple(f"bild-ä-犬-{i}-{row}" for row in range(rows))
        phi = rng.standard_normal((rows, K), np.float32)
        part = Part(request.param, f"p{i}", ids, rng.random(rows, np.float32), phi, ())
        records.append(commit_part(store, part, request.param, "binary", 0.0, 1, "here"))
    work = Work(AuditConfig(str(folder), "any"), {"m": FeatureSet(request.param)})
    return StoreWorker(work), records


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The parts that are read from the store, in order."""
    names, read_part = list[str](), worker.read_part
    monkeypatch.setattr(
        worker, "read_part", lambda store, record: names.append(record.shard) or read_part(store, record)
    )
    return names


def taken(source: KeptFeatures, records: list[Record]) -> list[Block]:
    """As a pass over features takes them, which stops after the last row that it expects."""
    blocks, rows = [], 0
    with closing(source.blocks(records)) as coming:
        while rows < sum(record.rows for record in records):
            blocks.append(next(coming))
            rows += len(blocks[-1].ids)
    return blocks


def kept(features, budget: KeepingBudget) -> KeptFeatures:
    return KeptFeatures(features[0], budget, sum(record.bytes for record in features[1]))


def require_equal(blocks: list[Block], others: list[Block]) -> None:
    assert len(blocks) == len(others) > 0
    for block, other in zip(blocks, others, strict=True):
        assert block.ids == other.ids
        for name in ("unit", "weight", "scale"):
            np.testing.assert_array_equal(getattr(block, name), getattr(other, name), strict=True)


def test_what_is_kept_is_what_was_read_and_is_read_and_checked_once(features, reads, tmp_path):
    """The smallest part fits into memory, the second only on disk, and the third nowhere."""
    reader, records = features
    expected = list(reader.blocks(*records))
    sizes = [memory_of(block) for block in expected]
    budget = KeepingBudget(memory=max(sizes[0], records[0].bytes), disk=records[1].bytes + 100, folder=str(tmp_path))
    source = kept(features, budget)
    reads.clear()
    require_equal(taken(source, records), expected)
    assert reads == ["p0", "p1", "p2"]
    for _ in range(2):
        reads.clear()
        require_equal(taken(source, records), expected)
        assert reads == ["p2"], "what does not fit is streamed, and the rest is not read again"
    assert source.memory == sizes[0] <= budget.memory
    assert not list(tmp_path.iterdir()), "the file has no name"


@pytest.mark.parametrize(("budget", "again"), [
    (KeepingBudget(), 3), (KeepingBudget(memory=1 << 20), 0), (KeepingBudget(disk=1 << 20), 0),
])  # fmt: skip
def test_each_kind_of_budget(features, reads, budget, again):
    reader, records = features
    source, expected = kept(features, budget), list(reader.blocks(*records))
    taken(source, records)
    reads.clear()
    require_equal(taken(source, records[::-1]), [expected[2], expected[1], expected[0]])
    assert len(reads) == again
    assert source.memory <= budget.memory


def test_a_part_that_was_not_read_to_its_end_is_not_kept(features, reads):
    records = features[1]
    source = kept(features, KeepingBudget(memory=1 << 20))
    with closing(source.blocks(records)) as coming:
        next(coming)
    reads.clear()
    taken(source, records)
    assert set(reads) == {"p1", "p2"}


def test_a_damaged_part_is_named_and_not_kept(features, reads, tmp_path):
    reader, records = features
    source = kept(features, KeepingBudget(memory=1 << 20))
    path = Path(reader.store.uri) / FeatureSet(records[1].fingerprint).part("p1")
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    try:
        with pytest.raises(Damaged, match="p1"):
            taken(source, records)
    finally:
        path.write_bytes(data)
    require_equal(taken(source, records), list(reader.blocks(*records)))


@pytest.mark.parametrize("budget", [dict(memory=-1), dict(disk=-1)])
def test_a_negative_budget_is_refused(budget):
    with pytest.raises(UserError, match="expected a number of bytes"):
        KeepingBudget(**budget)


def test_a_disk_without_the_space_is_refused_before_a_question(features, tmp_path):
    with pytest.raises(UserError, match="cannot be reserved"):
        KeptFeatures(features[0], KeepingBudget(disk=1 << 60, folder=str(tmp_path)), expected=1 << 60)
    with pytest.raises(UserError, match="cannot be reserved"):
        kept(features, KeepingBudget(disk=1 << 20, folder=str(tmp_path / "nowhere")))
