"""The tree of Grams: its sums, what growth and a kill leave of it, and how much a solve reads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from concept_trak.audit import gram_tree as trees
from concept_trak.audit.gram import GramTask, GramWorker, SolveTask, SolveWorker, add_grams
from concept_trak.audit.gram_tree import FAN, MOST_READ, GramNode, cut_by_content, gram_tree
from concept_trak.audit.mapper import FirstAttempt, serial
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.plan import Demand, shards
from concept_trak.audit.prepare import Prepared
from concept_trak.audit.repair import gram_nodes
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig
from concept_trak.data.inventory import Survey
from concept_trak.data.shard import Shard, Source
from concept_trak.store.grams import read_gram
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Part
from concept_trak.store.records import Record, commit_part
from concept_trak.store.store import Store

FEATURES, K, ROWS = FeatureSet("f" * 8), 4, 2
BEFORE_CUTS = [(0, 10), (10, 11), (11, 18), (18, 26), (26, 40)]
BEFORE_NAMES = ["ee29d3708d864f49", "c775f941bf7febea", "49c4eed1d80ac641", "517bab8da122b331", "c4316d58f5b45103"]


def sources(count: int = 50, rows: int = 2560) -> list[Source]:
    """2,000 shards of 64 rows, in files named as `datasets` names them, with every second number left free."""
    return [Source(f"s3://bucket/train-{2 * i:05d}.parquet", f"etag{i}", rows) for i in range(count)]


def names(found: list[Source]) -> set[str]:
    return {node.name for node in gram_tree(shards(sorted(found, key=lambda s: s.uri), 64)).nodes}


@pytest.mark.parametrize("count", [0, 1, 16, 300, 2000, 40_000])
def test_every_level_covers_all_shards_in_order(count):
    tree = gram_tree(shards([Source("s3://bucket/a.parquet", "v", count)], 1))
    for level in tree.levels:
        assert [i for node in level for i in range(node.first, node.stop)] == list(range(count))
        assert all(node.first < node.stop for node in level)
        assert all(node.children[0].first == node.first for node in level if node.children)
    assert len(tree.top) <= MOST_READ
    assert all(len(level) > MOST_READ for level in tree.levels[:-1]), "a level more than a solve needs"
    assert len(tree.levels) == {0: 1, 1: 1, 16: 1, 300: 1, 2000: 2, 40_000: 3}[count]
    assert len({node.name for node in tree.nodes}) == sum(len(level) for level in tree.levels)


def test_the_leaves_are_the_groups_of_stores_written_before():
    """Names in stores of the flat list: the first 16 digits of sha256 over the hashes of a group's shards."""
    plan = [Shard("s3://bucket/a.parquet", "v", first, 64) for first in range(0, 64 * 40, 64)]
    leaves = gram_tree(plan).levels[0]
    assert [(leaf.first, leaf.stop) for leaf in leaves] == BEFORE_CUTS
    assert [leaf.name for leaf in leaves] == BEFORE_NAMES


@pytest.mark.parametrize("where", ["train-00000a", "train-00051", "z"])
def test_growth_by_a_file_leaves_all_but_a_path_to_the_top(where):
    """A file of 3 shards in front, in the middle, at the end: at each level the node it falls into may be cut anew."""
    old = sources()
    before, after = names(old), names([*old, Source(f"s3://bucket/{where}.parquet", "etag", 150)])
    depth = len(gram_tree(shards(old, 64)).levels)
    assert len(before - after) <= depth
    assert len(after - before) <= 4 * depth, f"{len(after - before)} of {len(after)} Grams must be summed again"


def test_a_lost_or_changed_file_leaves_nearly_all_nodes():
    old = sources()
    ends = sum(int(s.hash, 16) % FAN == 0 for s in shards([old[20]], 64))
    for other in (old[:20] + old[21:], [*old[:20], replace(old[20], version="new"), *old[21:]]):
        before, after = names(old), names(other)
        assert len(before - after) <= 2 * (ends + 1), "nodes without a shard of that file changed"


def test_a_group_ends_after_a_hash_that_is_0_mod_16():
    assert cut_by_content(["1", "a0", "10", "f", "2"], str) == [["1", "a0"], ["10"], ["f", "2"]]


class Disk(Store):
    """Keeps the features of some shards; `left` is how many files may still be created before the process is killed."""

    left = 10**9

    def create(self, name: str, data: bytes) -> bool:
        if Disk.left == 0:
            raise Killed(name)
        Disk.left -= 1
        return super().create(name, data)


class Killed(BaseException):
    """No code of ours catches it."""


@pytest.fixture
def narrow(monkeypatch):
    """A tree of three levels over few shards."""
    monkeypatch.setattr(trees, "FAN", 4)
    monkeypatch.setattr(trees, "MOST_READ", 6)
    monkeypatch.setattr(Disk, "left", 10**9)


@pytest.fixture
def unlike_shards() -> list[Shard]:
    return [Shard(f"s3://bucket/{i:03d}.parquet", "v", 0, ROWS) for i in range(150)]


def phi_of(shard: Shard) -> np.ndarray:
    return np.random.default_rng(int(shard.hash[:8], 16)).normal(size=(ROWS, K)).astype(np.float32)


def commit(store: Store, plan: Sequence[Shard]) -> list[Record]:
    """A part of every shard; of every seventh all rows were rejected."""
    return [commit_part(store, part_of(shard), "float32", "binary", 1.0, 1, "host") for shard in plan]


def part_of(shard: Shard) -> Part:
    phi = phi_of(shard)[: 0 if is_empty(shard) else ROWS]
    ids = tuple(f"{shard.name}:{i}" for i in range(len(phi)))
    return Part(FEATURES.fingerprint, shard.name, ids, np.ones(len(phi), np.float32), phi, ())


def is_empty(shard: Shard) -> bool:
    return int(shard.hash, 16) % 7 == 0


def run_over(store: Store, plan: Sequence[Shard], summed: list[str]) -> AuditRun:
    """A run that notes which Grams it sums."""

    def noting(stage, worker, settings, tasks):
        summed.extend(task.name for task in tasks)
        return serial(stage, worker, settings, tasks)

    work = Work(AuditConfig(store=store.uri, audit="demo"), {"m": FEATURES})
    prepared = Prepared(
        work=work, store=store, audit=Audit(store, "demo"), plan=list(plan), data=Survey(()), settings={}, queries=(),
        demand=Demand(1, 1, 1, 1), resolution=1, sizes={},
    )  # fmt: skip
    return AuditRun(prepared, noting)


@pytest.fixture
def store(tmp_path, monkeypatch, narrow) -> Store:
    monkeypatch.setattr("concept_trak.audit.worker.Store", Disk)
    return Disk(f"memory://{tmp_path.name}")


def dense(plan: Sequence[Shard]) -> np.ndarray:
    """The naive twin: K of all rows, in one product, in float64."""
    phi = np.concatenate([phi_of(shard) for shard in plan if not is_empty(shard)]).astype(np.float64)
    return phi.T @ phi


def test_the_top_sums_to_k_and_every_node_to_its_shards(store, unlike_shards):
    plan, summed = unlike_shards, list[str]()
    records = commit(store, plan)
    top = run_over(store, plan, summed).sum_grams({"m": records})["m"]
    tree = gram_tree(plan)
    assert len(tree.levels) >= 3, "this proves nothing"
    assert len(top) <= trees.MOST_READ
    gram = add_grams(store, FEATURES, top)
    assert gram.count == sum(record.rows for record in records)
    np.testing.assert_allclose(gram.matrix, dense(plan), rtol=1e-5, atol=1e-5)
    for node in tree.nodes:
        below = plan[node.first : node.stop]
        if all(map(is_empty, below)):
            assert node.name not in summed, "a node without rows has no file"
            continue
        np.testing.assert_allclose(read_gram(store, FEATURES, node.name)[0], dense(below), rtol=1e-5, atol=1e-5)
    assert run_over(store, plan, again := []).sum_grams({"m": records})["m"] == top
    assert again == []


def test_growth_sums_a_path_and_ends_with_the_bytes_of_a_run_from_nothing(store, unlike_shards):
    new = [Shard("s3://bucket/075a.parquet", "v", 0, ROWS)]
    old, grown = unlike_shards, sorted([*unlike_shards, *new], key=lambda s: s.source)
    run_over(store, old, []).sum_grams({"m": commit(store, old)})
    run_over(store, grown, summed := []).sum_grams({"m": commit(store, grown)})
    tree = gram_tree(grown)
    assert 0 < len(summed) <= 3 * len(tree.levels), f"{len(summed)} of {len(list(tree.nodes))} were summed again"
    alone = Disk(f"{store.uri}-alone")
    run_over(alone, grown, []).sum_grams({"m": commit(alone, grown)})
    assert files(alone).items() <= files(store).items()


def files(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names(FEATURES.grams)}


def test_a_run_that_is_killed_at_any_create_goes_on_to_the_same_bytes(store, unlike_shards):
    plan = unlike_shards[:60]
    records = commit(store, plan)
    whole = Disk(f"{store.uri}-whole")
    run_over(whole, plan, []).sum_grams({"m": commit(whole, plan)})
    kills = 0
    while True:
        Disk.left = 1
        try:
            top = run_over(store, plan, []).sum_grams({"m": records})["m"]
        except Killed:
            kills += 1
            continue
        break
    assert kills >= len(files(whole)) - 1, "it was not killed between any two creates"
    assert files(store) == files(whole)
    assert add_grams(store, FEATURES, top).count == sum(record.rows for record in records)


def test_what_is_below_a_sum_that_exists_is_not_needed(store, unlike_shards):
    records = commit(store, unlike_shards)
    run_over(store, unlike_shards, []).sum_grams({"m": records})
    tree = gram_tree(unlike_shards)
    below = [node for level in tree.levels[:-1] for node in level]
    for node in below:
        store.delete(FEATURES.gram(node.name))
    run_over(store, unlike_shards, summed := []).sum_grams({"m": records})
    assert summed == []
    top = next(node for node in tree.top if has_rows(node, unlike_shards))
    store.delete(FEATURES.gram(top.name))
    run_over(store, unlike_shards, summed).sum_grams({"m": records})
    assert set(summed) == {top.name, *(n.name for n in below if within(n, top) and has_rows(n, unlike_shards))}
    assert len(summed) > 2


def has_rows(node: GramNode, plan: Sequence[Shard]) -> bool:
    return not all(map(is_empty, plan[node.first : node.stop]))


def within(inner: GramNode, outer: GramNode) -> bool:
    return outer.first <= inner.first and inner.stop <= outer.stop


def test_the_solution_is_that_of_the_dense_system(store, unlike_shards):
    plan = unlike_shards
    run = run_over(store, plan, [])
    top = run.sum_grams({"m": commit(store, plan)})["m"]
    query, k_matrix = np.arange(1.0, K + 1), dense(plan)
    solution = SolveWorker(run.prepared.work)(SolveTask("m", top, query[None]), FirstAttempt())
    lam = run.prepared.config.damping * np.trace(k_matrix) / K
    np.testing.assert_allclose(solution.z[0], np.linalg.solve(k_matrix + lam * np.eye(K), query), rtol=1e-5)


def test_a_child_that_is_not_the_sum_of_its_shards_is_not_added(store, unlike_shards):
    plan = unlike_shards[:4]
    work = run_over(store, plan, []).prepared.work
    leaf = GramTask("m", "leaf", tuple(r for r in commit(store, plan) if r.rows))
    GramWorker(work)(leaf, FirstAttempt())
    wrong = replace(leaf.expected, count=leaf.expected.count + 1)
    with pytest.raises(ValueError, match=r"grams/leaf.safetensors: it is a sum over"):
        GramWorker(work)(GramTask("m", "node", children=(wrong,)), FirstAttempt())


def test_gc_and_verify_know_every_node_by_the_plan_alone(narrow, unlike_shards):
    rows = [{"source": s.source, "version": s.version, "first_row": s.first_row, "rows": s.rows} for s in unlike_shards]
    tree = gram_tree(unlike_shards)
    nodes = gram_nodes(rows)
    assert nodes.keys() == {node.name for node in tree.nodes}
    for node in tree.nodes:
        assert nodes[node.name] == [shard.name for shard in unlike_shards[node.first : node.stop]]


def test_a_task_is_named_by_its_label_in_a_log():
    assert str(GramTask("m", "node")) == "m-node"
