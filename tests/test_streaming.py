"""Memory that does not grow with the data: of batches and parts two at a time, one read while the other is used."""

import threading

import numpy as np
import pytest
import torch

from cluster.executor import Attempt
from concept_trak import fisher, reduction, stages
from concept_trak.config import AuditConfig
from concept_trak.reduction import Group, Solve, SumGroup, System
from concept_trak.stages import Featuring, Featurize, Work
from concept_trak.store.codec import blocks
from concept_trak.store.commit import Store
from concept_trak.store.grams import read_gram
from concept_trak.store.records import Record, commit_part, read_part
from jobs.prepare import prepare
from tests.jobs.world import World, build
from tests.store.parts import a_part

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


@pytest.fixture
def records(tmp_path) -> list[Record]:
    store = Store(str(tmp_path))
    parts = [a_part(n=ROWS, k=K, shard=f"s{i}", fingerprint=FP, seed=i) for i in range(PARTS)]
    return [commit_part(store, part, "float32", "binary", 1.0, 1, "host") for part in parts]


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(AuditConfig(store=str(tmp_path), audit="demo", damping=0.5), {"m": FP})


@pytest.fixture
def read(monkeypatch) -> Count:
    """Counts the parts that reductions read."""
    count = Count()

    def counted(store, record):
        data = read_part(store, record)
        count.up()
        return data

    monkeypatch.setattr(reduction, "read_part", counted)
    return count


def every_phi(store: Store, records: list[Record]) -> np.ndarray:
    return np.concatenate([b.phi() for r in records for b in blocks(read_part(store, r))]).astype(np.float64)


def test_a_gram_is_summed_with_one_part_read_ahead(records, work, read, monkeypatch):
    used = Count()

    def watched(phi):
        used.up()
        read.require(min(used.number + 1, PARTS), f"part {used.number} is used")
        return gram(phi)

    gram = fisher.gram
    monkeypatch.setattr(fisher, "gram", watched)
    assert SumGroup(work)(Group("m", "all", tuple(records)), FIRST) == "all"
    assert used.number >= PARTS
    matrix, count = read_gram(Store(work.config.store), FP, "all")
    phi = every_phi(Store(work.config.store), records)
    assert count == len(phi) == ROWS * PARTS
    np.testing.assert_allclose(matrix, phi.T @ phi, rtol=1e-5, atol=1e-6, err_msg="a part is missing, or counted twice")


def test_the_dual_form_reads_every_part_once_and_in_order(tmp_path, records, work, read):
    """Four rows are fewer than six features, so K has no inverse of its own."""
    few = records[:2]
    SumGroup(work)(Group("m", "few", tuple(few)), FIRST)
    assert read.number == 2
    query = np.arange(1.0, K + 1)
    solution = Solve(work)(System("m", ("few",), (tuple(query),), tuple(few)), FIRST)
    assert (solution.count, read.number) == (4, 4)
    phi = every_phi(Store(work.config.store), few)
    matrix = phi.T @ phi
    expected = np.linalg.solve(matrix + 0.5 * np.trace(matrix) / K * np.eye(K), query)
    np.testing.assert_allclose(solution.z[0], expected, rtol=1e-4)


def test_an_altered_part_is_named_though_it_was_read_ahead(records, work, tmp_path):
    (path,) = tmp_path.glob("features/*/parts/s2.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"s2\.parquet was truncated or altered"):
        SumGroup(work)(Group("m", "all", tuple(records)), FIRST)
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")], "the thread outlives its item"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


def test_the_next_batch_of_images_is_decoded_while_one_is_computed(world, tmp_path, monkeypatch):
    decoded, plain = Count(), stages.samples

    def counted(*arguments):
        for one in plain(*arguments):
            decoded.up()
            yield one

    class Watched(Featurize):
        computed = 0

        def _features(self, row, ready):
            self.computed += len(ready)
            decoded.require(min(self.computed + 2, 8), f"{self.computed} samples are computed")
            return super()._features(row, ready)

    monkeypatch.setattr(stages, "samples", counted)
    p = prepare(world.config(tmp_path, "model.batch=2", data="few"))
    worker = Watched(p.work)
    (record,) = worker(Featuring(("caption_trak",), p.plan[0]), FIRST)
    assert (record.rows, worker.computed) == (8, 8)
    (block,) = blocks(read_part(p.store, record))
    assert block.ids == [f"shapes-{i:06d}" for i in range(8)], "rows stand in the order of the source"
    assert torch.isfinite(torch.from_numpy(block.phi())).all()
