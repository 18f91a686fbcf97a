"""Parts, Grams and queries that cannot be right are named, and no pass over the features uses them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.executor import Attempt
from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.audit.gram import GramTask, GramWorker, SolveTask, SolveWorker
from concept_trak.audit.score import ScoreTask, ScoreWorker
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.config import AuditConfig
from concept_trak.store import codec, consistency
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Damaged, Part
from concept_trak.store.queries import StoredQuery, read_query, write_query
from concept_trak.store.records import Record, commit_part
from concept_trak.store.store import Store
from tests.store.parts import a_part

FIRST = Attempt(1, 0)
FP, K, ROWS = "f" * 8, 6, 2


@pytest.fixture
def records(tmp_path) -> list[Record]:
    """Three parts of two rows."""
    parts = [a_part(n=ROWS, k=K, shard=f"s{i}", fingerprint=FP, seed=i) for i in range(3)]
    return [commit_part(Store(str(tmp_path)), part, "float32", "binary", 1.0, 1, "host") for part in parts]


@pytest.fixture
def work(tmp_path) -> Work:
    """Two concepts with their queries written."""
    concepts = tuple(Concept(name, prompt=f"a {name} one", without_prompt="one") for name in ("red", "blue"))
    config = AuditConfig(
        store=str(tmp_path), audit="demo", damping=0.5, concepts=concepts, methods={"m": METHODS["trak"]}
    )
    for concept in concepts:
        query = StoredQuery(
            concept=concept.name, method="m", phi=np.ones(K, np.float32), solved=np.ones(K, np.float32),
            residual=0.0, lam=1.0, spread_solved=1.0, spread_phi=2.0,
        )  # fmt: skip
        write_query(Audit(Store(config.store), "demo"), query)
    return Work(config, {"m": FeatureSet(FP)})


def committed_with(change: Callable[[Part], Part], folder: Path, monkeypatch) -> Record:
    """A part that cannot be right, with a record and a sha256 that agree with it."""
    part = change(a_part(n=ROWS, k=K, shard="forged", fingerprint=FP))
    with monkeypatch.context() as patch:
        patch.setattr(consistency, "_require_finite", lambda block: None)
        patch.setattr(consistency, "_require_whole", lambda *args: None)
        patch.setattr(codec.np, "isfinite", lambda x: np.ones(np.shape(x), bool))
        return commit_part(Store(str(folder)), part, "float32", "binary", 1.0, 1, "host")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: replace(part, weight=np.array([1, np.inf], np.float32)), "a weight is not finite"),
        (lambda part: replace(part, ids=(part.ids[0],) * 2), "1 sample ids occur twice"),
    ],
    ids=["weight", "id"],
)
def test_no_pass_uses_a_part_that_cannot_be_right(tmp_path, work, monkeypatch, change, message):
    """Also where its own record and sha256 agree with it."""
    record = committed_with(change, tmp_path, monkeypatch)
    for run in (
        lambda: GramWorker(work)(GramTask("m", "all", (record,)), FIRST),
        lambda: ScoreWorker(work)(ScoreTask("m", (record,)), FIRST),
        lambda: list(StoreWorker(work).features(record)),
    ):
        with pytest.raises(Damaged, match=rf"parts/forged.parquet: {message}. Run .*jobs.verify repair=true"):
            run()


def test_a_record_with_other_counts_than_its_part_is_refused(tmp_path, records, work):
    with pytest.raises(Damaged, match=r"parts/s0.parquet has 2 rows; its record has 3"):
        list(StoreWorker(work).features(replace(records[0], rows=3)))


def test_no_system_is_solved_with_a_gram_that_is_not_its_parts_sum(records, work):
    group = GramTask("m", "few", tuple(records[:2]))
    GramWorker(work)(group, FIRST)
    for expected, message in (
        (replace(group.expected, count=5), "it is a sum over 4 rows, and its shards have 5"),
        (replace(group.expected, sum_squares=2 * group.expected.sum_squares), "its trace is .* sum to"),
    ):
        with pytest.raises(Damaged, match=rf"grams/few.safetensors: {message}"):
            SolveWorker(work)(SolveTask("m", (expected,), np.ones((1, K)), group.records), FIRST)


def test_queries_that_do_not_fit_each_other_or_the_parts_are_refused(tmp_path, work, records):
    audit = Audit(Store(str(tmp_path)), "demo")
    name = audit.name("m/queries/blue.parquet")
    wide = replace(read_query(audit, "m", "blue"), phi=np.ones(K + 1, np.float32), solved=np.ones(K + 1, np.float32))
    audit.store.delete(name)
    write_query(audit, wide)
    with pytest.raises(Damaged, match=r"red.parquet have 7 and 6 numbers"):
        ScoreWorker(work)
    other = audit.name("m/queries/red.parquet")
    audit.store.delete(other)
    write_query(audit, replace(wide, concept="red"))
    with pytest.raises(Damaged, match=r"parts/s0.parquet has features of 6 numbers, and the queries have 7"):
        ScoreWorker(work)(ScoreTask("m", tuple(records)), FIRST)


def test_a_score_beyond_float32_is_not_ranked(tmp_path, work):
    large = replace(a_part(n=ROWS, k=K, shard="large", fingerprint=FP), weight=np.full(ROWS, 1e38, np.float32))
    record = commit_part(Store(str(tmp_path)), large, "float32", "binary", 1.0, 1, "host")
    with pytest.raises(UserError, match=r"a score of m is larger than float32 holds: the weights in .*large.parquet"):
        ScoreWorker(work)(ScoreTask("m", (record,)), FIRST)
