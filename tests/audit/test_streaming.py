"""Memory that does not grow with the data: what comes next is read while what came before is used, and no more."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cluster.executor import Attempt
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.fisher import stored_gram
from concept_trak.attribution.method import METHODS
from concept_trak.audit import featurize, gram, worker
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.gram import GramTask, GramWorker, SolveTask, SolveWorker
from concept_trak.audit.prepare import prepare
from concept_trak.audit.score import ScoreTask, ScoreWorker, score_tasks
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.config import AuditConfig
from concept_trak.store.codec import decode_blocks
from concept_trak.store.grams import read_gram
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit, read_table, scores_file
from concept_trak.store.part import Block
from concept_trak.store.queries import StoredQuery, write_query
from concept_trak.store.records import Record, commit_part, read_part
from concept_trak.store.store import Store
from tests.jobs.world import World, build
from tests.store.parts import a_part
from tests.tolerances import DENSE32
from tests.toys import top_k

FIRST, LONGEST = Attempt(1, 0), 30.0
FP, K, ROWS, PARTS = "f" * 8, 6, 2, 4


class Count:
    """How often something happened; whoever waits is woken."""

    def __init__(self):
        self.number, self.changed = 0, threading.Condition()

    def up(self) -> None:
        with self.changed:
            self.number += 1
            self.changed.notify_all()

    def require(self, expected: int, what: str) -> None:
        """It comes to be `expected` by itself, and is not more."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.number >= expected, LONGEST), f"{what}: nothing is read ahead"
            assert self.number == expected, f"{what}: more than one is read ahead, so memory has no bound"


def commit(folder, parts: int, dtype: str = "float32", rows: int = ROWS) -> list[Record]:
    """That many parts of `rows` rows, every one its own row group; the third has none."""
    store = Store(str(folder))
    numbers = [0 if i == 2 and parts > PARTS else rows for i in range(parts)]
    made = [a_part(n=n, k=K, shard=f"s{i}", fingerprint=FP, seed=i) for i, n in enumerate(numbers)]
    return [commit_part(store, part, dtype, "binary", 1.0, 1, "host") for part in made]


@pytest.fixture
def records(tmp_path) -> list[Record]:
    return commit(tmp_path, PARTS)


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(AuditConfig(store=str(tmp_path), audit="demo", damping=0.5), {"m": FeatureSet(FP)})


@pytest.fixture
def read(monkeypatch) -> Count:
    """Counts the parts that reductions read."""
    count = Count()

    def counted(store, record):
        data = read_part(store, record)
        count.up()
        return data

    monkeypatch.setattr(worker, "read_part", counted)
    return count


def every_phi(store: Store, records: list[Record]) -> np.ndarray:
    return np.concatenate([b.phi() for r in records for b in decode_blocks(read_part(store, r))]).astype(np.float64)


def test_a_gram_is_summed_with_one_part_read_ahead(records, work, read, monkeypatch):
    used = Count()

    def watched(blocks):
        for block in blocks:
            used.up()
            read.require(min(used.number + 1, PARTS), f"part {used.number} is used")
            yield block

    monkeypatch.setattr(gram, "stored_gram", lambda blocks: stored_gram(watched(blocks)))
    assert GramWorker(work)(GramTask("m", "all", tuple(records)), FIRST).name == "all"
    assert used.number == PARTS
    matrix, count = read_gram(Store(work.config.store), FeatureSet(FP), "all")
    phi = every_phi(Store(work.config.store), records)
    assert count == len(phi) == ROWS * PARTS
    np.testing.assert_allclose(matrix, phi.T @ phi, rtol=1e-5, atol=1e-6, err_msg="a part is missing, or counted twice")


def test_the_dual_form_reads_every_part_once_and_in_order(tmp_path, records, work, read):
    """Four rows are fewer than six features, so K has no inverse of its own."""
    few = records[:2]
    group = GramTask("m", "few", tuple(few))
    GramWorker(work)(group, FIRST)
    assert read.number == 2
    query = np.arange(1.0, K + 1)
    solution = SolveWorker(work)(SolveTask("m", (group.expected,), np.array([query]), tuple(few)), FIRST)
    assert (solution.count, read.number) == (4, 4)
    phi = every_phi(Store(work.config.store), few)
    matrix = phi.T @ phi
    expected = np.linalg.solve(matrix + 0.5 * np.trace(matrix) / K * np.eye(K), query)
    np.testing.assert_allclose(solution.z[0], expected, rtol=1e-4)


class Held(bytes):
    """A part's bytes that count how many such are alive, and the most there were."""

    alive, most = 0, 0

    def __init__(self, _: bytes):
        Held.alive += 1
        Held.most = max(Held.most, Held.alive)

    def __del__(self):
        Held.alive -= 1


def test_memory_is_the_same_for_ten_times_the_parts(tmp_path, work, monkeypatch):
    """Parts alive at once, and what Arrow holds at each row group in units of one."""
    monkeypatch.setattr(worker, "read_part", lambda store, record: Held(read_part(store, record)))
    records = commit(tmp_path, 40, rows=500)
    for parts in (5, 40):
        Held.most = 0
        decoded = most_decoded(StoreWorker(work).blocks(*records[:parts]))
        assert Held.alive == 0, "a part stays in memory though it was used"
        assert Held.most <= 3, "more than one used, one read, and one for the moment between them"
        assert decoded < 6, f"{parts} parts: {decoded} row groups' features are in memory"


def most_decoded(coming: Iterator[Block]) -> float:
    """The most that Arrow held beyond what it held before, in units of a row group's features."""
    standing = pa.total_allocated_bytes()
    return max((pa.total_allocated_bytes() - standing) / block.unit.nbytes for block in coming)


COLUMNS = ("red", "red~plain", "blue", "blue~plain")


@pytest.fixture
def asked(tmp_path, work) -> tuple[Work, np.ndarray]:
    """Two concepts with their solved and plain queries written; and the queries in the order of `COLUMNS`."""
    concepts = tuple(Concept(name, prompt=f"a {name} one", without_prompt="one") for name in ("red", "blue"))
    config = replace(work.config, concepts=concepts, methods={"m": METHODS["trak"]}, top=3, scores="all")
    z = np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)
    for i, concept in enumerate(concepts):
        query = StoredQuery(
            concept=concept.name, method="m", phi=z[2 * i + 1], solved=z[2 * i],
            residual=0.0, lam=1.0, spread_solved=1.0, spread_phi=2.0,
        )  # fmt: skip
        write_query(Audit(Store(config.store), "demo"), query)
    return Work(config, work.features), z


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_parts_scored_together_are_a_dense_product_a_sort_and_a_file_each(tmp_path, asked, dtype):
    """The third part has no row; its file says so."""
    (work, z), store = asked, Store(str(tmp_path))
    records = commit(tmp_path, PARTS + 2, dtype, 5)
    found = ScoreWorker(work)(ScoreTask("m", tuple(records)), FIRST)
    stored = [b for r in records for b in decode_blocks(read_part(store, r))]
    ids, weight = [i for b in stored for i in b.ids], np.concatenate([b.weight for b in stored]).astype(np.float64)
    dense = weight[:, None] * (every_phi(store, records) @ z.T.astype(np.float64))
    tables = [read_table(Audit(store, "demo"), scores_file("m", r.shard)) for r in records]
    assert [t.num_rows for t in tables] == [5, 5, 0, 5, 5, 5]
    table = pa.concat_tables(tables)
    assert table["sample_id"].to_pylist() == ids
    assert (tuple(found.columns), tuple(table.column_names[1:])) == (COLUMNS, COLUMNS)
    where = [r.shard for r in records for _ in range(r.rows)]
    for j, name in enumerate(COLUMNS):
        made = table[name].to_numpy()
        assert np.abs(made - dense[:, j]).max() < DENSE32 * np.abs(dense[:, j]).max(), name
        ends = top_k(3, list(zip(made.tolist(), ids, where, strict=True)))
        assert (found.columns[name].top, found.columns[name].bottom) == (ends.top, ends.bottom)
        assert sum(found.columns[name].histogram) == 25


def test_parts_are_scored_in_plan_order_some_at_a_time(records):
    size = records[0].bytes
    for limit, expected in ((1, [1, 1, 1, 1]), (2 * size - 9, [2, 2]), (3 * size - 9, [3, 1]), (99 * size, [4])):
        items = list(score_tasks("m", records, most=limit))
        assert [len(item.records) for item in items] == expected
        assert [r for item in items for r in item.records] == records, "a part is lost, or out of order"
    assert list(score_tasks("m", [])) == []


def test_an_altered_part_is_named_though_it_was_read_ahead(records, work, tmp_path):
    (path,) = tmp_path.glob("features/*/parts/s2.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"s2\.parquet was truncated or altered"):
        GramWorker(work)(GramTask("m", "all", tuple(records)), FIRST)
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")], "the thread outlives its item"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


def test_the_next_batch_of_images_is_decoded_while_one_is_computed(world, tmp_path, monkeypatch):
    decoded, plain = Count(), featurize.samples

    def counted(*arguments):
        for one in plain(*arguments):
            decoded.up()
            yield one

    class Watched(FeaturizeWorker):
        computed = 0

        def features(self, rows, ready, *report):
            self.computed += len(ready)
            decoded.require(min(self.computed + 2, 8), f"{self.computed} samples are computed")
            return super().features(rows, ready, *report)

    monkeypatch.setattr(featurize, "samples", counted)
    p = prepare(world.config(tmp_path, "model.batch=2", data="few"))
    worker = Watched(p.work)
    (record,) = worker(FeaturizeTask(("caption_trak",), p.plan[0]), FIRST).records
    assert (record.rows, worker.computed) == (8, 8)
    (block,) = decode_blocks(read_part(p.store, record))
    assert block.ids == [f"shapes-{i:06d}" for i in range(8)], "rows stand in the order of the source"
    assert torch.isfinite(torch.from_numpy(block.phi())).all()
