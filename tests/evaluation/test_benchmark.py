"""The benchmark's own workers against the audit they stand beside: the same features, queries, scores and grades."""

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from cluster.executor import Attempt
from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.ranking import average_precision
from concept_trak.audit.prepare import Prepared, prepare
from concept_trak.audit.results import shows
from concept_trak.data.index import label_values
from concept_trak.evaluation.baselines import GRADIENT_FREE, BaselineTask, BaselineWorker
from concept_trak.evaluation.benchmark import (
    GRADE_KINDS,
    PLAIN,
    BenchmarkQueryResult,
    BenchmarkQueryTask,
    BenchmarkQueryWorker,
    GradeTask,
    GradeWorker,
    benchmark_query_file,
    ranking_file,
)
from concept_trak.evaluation.retrieval import grade
from concept_trak.store.compaction import committed
from concept_trak.store.manifest import read_table, scores_file
from concept_trak.store.records import Record
from tests.few_steps import generate_in_few_steps
from tests.jobs.world import CONCEPT, Found, World, build
from tests.models.test_embedding import save as save_embedding
from tests.tolerances import DENSE32

FIRST = Attempt(1, 0)
RED = "{name: red, prompt: a red triangle, without_prompt: triangle, samples: 4, truth: {colour: red}}"
MEASURES = ("average_precision", "base_rate", "precision_at_10", "recall_at_carriers")


@dataclass(frozen=True)
class Done:
    """A finished audit with every score, its work, and the queries of the benchmark beside it."""

    p: Prepared
    records: dict[str, tuple[Record, ...]]

    @property
    def concepts(self) -> tuple[Concept, ...]:
        return self.p.config.concepts

    def grade(self, method: str, dampings: tuple[float, ...], each: int) -> list[dict]:
        row = self.p.config.methods[method]
        item = GradeTask(method, "own", row, self.records[method], tuple(self.p.plan), dampings, each)
        return list(GradeWorker(self.p.work)(item, FIRST).rows)

    @property
    def labels(self) -> dict[str, dict[str, str]]:
        index = GradeWorker(self.p.work).index
        return dict(pair for shard in map(index, self.p.plan) for pair in label_values(shard))

    def path(self, relative: str) -> Path:
        return Path(self.p.config.store) / self.p.audit.name(relative)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", autouse=True)
def _images_in_few_steps():
    """Of `das`, whose answers are compared within this process."""
    with pytest.MonkeyPatch.context() as patch:
        generate_in_few_steps(patch)
        yield


@pytest.fixture(scope="module")
def done(_images_in_few_steps, world, tmp_path_factory) -> Done:
    """48 rows, 64 features: dual. A weighted unit-norm row with a concept query, and a weighted whole-image row."""
    store, concepts = tmp_path_factory.mktemp("audit"), CONCEPT.replace("samples: 2", "samples: 4")
    # Random weights: unless every fit is believed, nothing is left of the row.
    chosen = (f"concepts=[{concepts},{RED}]", "methods.fit_trak.train.doubt=1e9")
    assert world.audit(store, *chosen, method="[fit_trak,das]").code == 0
    p = prepare(world.config(store, *chosen, method="[fit_trak,das]"))
    planned = [shard.planned for shard in p.plan]
    found = {m: committed(p.store, fp, planned) for m, fp in p.work.features.items()}
    worker = BenchmarkQueryWorker(p.work)
    for row in p.config.methods.values():
        for concept in p.config.concepts:
            worker(BenchmarkQueryTask(row, concept), FIRST)
    return Done(p, {m: tuple(records[shard.name] for shard in planned) for m, records in found.items()})


@pytest.mark.parametrize("method", ["das", pytest.param("fit_trak", marks=pytest.mark.soak)])
def test_a_grade_is_that_of_the_audits_own_scores(done, method):
    """All of a concept's samples as one query, at the audit's damping and as the plain inner product."""
    audits = json.loads(done.path("metrics.json").read_text())["concepts"]
    rows = done.grade(method, (done.p.config.damping, PLAIN), each=4)
    assert len(rows) == 2 * 2 * 2
    assert all(list(row) == list(GRADE_KINDS) for row in rows)
    for row in rows:
        if not row["flipped"]:
            expected = audits[row["concept"]][method if row["damping"] != PLAIN else f"{method}~plain"]
            assert {m: row[m] for m in MEASURES} == pytest.approx({m: expected[m] for m in MEASURES}), (
                f"{method}, {row['concept']} at damping {row['damping']:g}: another order than the audit's scores"
            )


def test_flipped_is_the_same_ranking_from_below(done):
    tables = [read_table(done.p.audit, scores_file("fit_trak", shard.name)) for shard in done.p.plan]
    for row in done.grade("fit_trak", (PLAIN,), each=4):
        if row["flipped"]:
            column = f"{row['concept']}~plain"
            scores = {
                i: v for t in tables for i, v in zip(t["sample_id"].to_pylist(), t[column].to_pylist(), strict=True)
            }
            (concept,) = [c for c in done.concepts if c.name == row["concept"]]
            ranked = [shows(concept, done.labels[i]) for i in sorted(scores, key=lambda i: (scores[i], i))]
            assert row["average_precision"] == pytest.approx(average_precision(ranked))


@pytest.mark.parametrize(("each", "queries"), [(1, 4), (2, 2), (4, 1)])
def test_a_query_is_a_run_of_samples_of_its_own(done, each, queries):
    """Against scores by hand, w_i <phi_i, mean of each run's phi_q>."""
    rows = done.grade("fit_trak", (1.0, PLAIN), each)
    ids, weight, phi = Found(Path(done.p.config.store), done.p.audit.id).features("fit_trak")
    for concept in done.concepts:
        file = benchmark_query_file(done.p.config.methods["fit_trak"], concept)
        samples = np.array(read_table(done.p.audit, file)["phi"].to_pylist())
        runs = np.stack([samples[i : i + each].mean(0) for i in range(0, 4, each)])
        relevant = np.array([shows(concept, done.labels[i]) for i in ids])
        expected = grade(weight[:, None] * (phi @ runs.T), relevant, ids).average_precision
        found = [
            r["average_precision"]
            for r in rows
            if (r["concept"], r["damping"], r["flipped"]) == (concept.name, PLAIN, 0)
        ]
        assert found == pytest.approx(expected.tolist()), "the samples of a query are others"
    assert [r["query"] for r in rows if (r["concept"], r["damping"], r["flipped"]) == ("red", PLAIN, 0)] == list(
        range(queries)
    )
    assert len(rows) == 2 * 2 * 2 * queries


def test_queries_differ_and_do_not_get_mixed_up(done):
    """Each concept alone gives the grades that it gets among others, in an audit of its own configuration."""
    together = done.grade("das", (1.0,), 1)
    work = replace(done.p.work, config=replace(done.p.config, concepts=done.concepts[1:]))
    item = GradeTask("das", "own", done.p.config.methods["das"], done.records["das"], tuple(done.p.plan), (1.0,), 1)
    alone = list(GradeWorker(work)(item, FIRST).rows)
    assert all(np.isnan(row["separation"]) for row in alone), "one concept is told from no other"
    among = [row for row in together if row["concept"] == done.concepts[1].name]
    unlike = dict.fromkeys(("separation", "gain_named", "gain_unnamed"), 0)  # the latter are NaN, unlike itself
    assert [row | unlike for row in alone] == [row | unlike for row in among]
    assert len({row["average_precision"] for row in alone}) > 1, "every query gives the same ranking"


def test_the_mean_of_a_benchmarks_queries_is_the_audits_own_query(done):
    for method, row in done.p.config.methods.items():
        for concept in done.concepts:
            (queries,) = read_table(done.p.audit, f"{method}/queries/{concept.name}.parquet").to_pylist()
            found = np.array(read_table(done.p.audit, benchmark_query_file(row, concept))["phi"].to_pylist())
            whole = np.array(queries["phi"])
            assert len(found) == concept.samples
            assert np.abs(found.mean(0) - whole).max() < DENSE32 * np.abs(whole).max(), f"{method}, {concept.name}"
            assert np.abs(found[0] - found[1]).max() > 0.01 * np.abs(whole).max(), "the samples are one and the same"


def test_no_query_is_computed_twice(done):
    row, concept = done.p.config.methods["das"], done.concepts[0]
    file = done.path(benchmark_query_file(row, concept))
    before = (file.stat().st_mtime_ns, file.read_bytes())
    assert BenchmarkQueryWorker(done.p.work)(BenchmarkQueryTask(row, concept), FIRST) == BenchmarkQueryResult(
        benchmark_query_file(row, concept)
    )
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before


def test_a_file_is_shared_by_what_asks_alike_and_by_nothing_else():
    ours, caption, whole = METHODS["fit_trak"], METHODS["caption_trak"], METHODS["d_trak"]
    published = METHODS["concept_trak"]
    red = Concept("red", "a red triangle", "a triangle")
    triangle = replace(red, name="triangle", without_prompt="red")
    assert benchmark_query_file(published, red) == benchmark_query_file(caption, red), (
        "one query side is computed for every row"
    )
    assert benchmark_query_file(ours, red) == benchmark_query_file(
        ours, replace(red, name="other", truth={"colour": "red"})
    )
    assert benchmark_query_file(whole, red) == benchmark_query_file(whole, triangle), (
        "a whole image is computed twice for its two factors"
    )
    queries = [replace(red, prompt="a red circle"), replace(red, seed=1), replace(red, samples=3), red]
    others = [
        benchmark_query_file(replace(ours, unit=False), red),
        benchmark_query_file(published, red),
        benchmark_query_file(replace(ours, query=replace(ours.query, eta=0.5)), red),
        benchmark_query_file(ours, triangle),
        *(benchmark_query_file(row, concept) for row in (ours, whole) for concept in queries),
    ]
    assert len(set(others)) == len(others), "other numbers under one name"


def test_a_ranking_is_kept_as_far_as_there_are_carriers(done):
    """Its share of carriers is the recall of all queries as one, whose scores are the mean of theirs."""
    done.path(ranking_file("das", "own")).unlink(missing_ok=True)
    rows = {(r["concept"], r["damping"], r["flipped"]): r for r in done.grade("das", (10.0, PLAIN), each=4)}
    done.path(ranking_file("das", "own")).unlink()
    done.grade("das", (10.0, PLAIN), each=1)
    kept = read_table(done.p.audit, ranking_file("das", "own")).to_pylist()
    for concept, damping in product(done.concepts, (10.0, PLAIN)):
        carriers = {i for i, labels in done.labels.items() if shows(concept, labels)}
        top = [r for r in kept if (r["concept"], r["damping"]) == (concept.name, damping)]
        assert [r["rank"] for r in top] == list(range(1, len(carriers) + 1))
        found = len(carriers & {r["sample_id"] for r in top}) / len(carriers)
        assert found == pytest.approx(rows[concept.name, damping, 0]["recall_at_carriers"]), "another order than graded"


def test_a_query_that_is_missing_is_no_zero(done):
    row = replace(done.p.config.methods["das"], unit=True)
    item = GradeTask("das", "own", row, done.records["das"], tuple(done.p.plan), (1.0,), 1)
    with pytest.raises(FileNotFoundError):
        GradeWorker(done.p.work)(item, FIRST)


def test_a_method_without_any_feature_is_told_so(done):
    item = GradeTask("das", "own", done.p.config.methods["das"], (), tuple(done.p.plan), (1.0,), 1)
    with pytest.raises(UserError, match="no training sample has a feature of das: all are rejects"):
        GradeWorker(done.p.work)(item, FIRST)


@pytest.mark.parametrize("baseline", [*GRADIENT_FREE, "resnet"])
def test_a_baselines_grades_are_beside_the_methods(done, baseline, tmp_path):
    folder = "" if baseline in GRADIENT_FREE else str(save_embedding(baseline, tmp_path / "weights"))
    rows = BaselineWorker(done.p.work)(BaselineTask(baseline, tuple(done.p.plan), 2, folder), FIRST).rows
    beside = {r["concept"]: r["base_rate"] for r in done.grade("das", (PLAIN,), 1)}
    assert [(r["concept"], r["query"]) for r in rows] == [(c.name, q) for c in done.concepts for q in (0, 1)]
    for row in rows:
        assert list(row) == list(GRADE_KINDS)
        assert (row["damping"], row["flipped"]) == (PLAIN, 0)
        assert row["base_rate"] == beside[row["concept"]]
        assert (row["average_precision"] == 1) == (baseline == "lookup")
