"""The workers of a benchmark: the features of the queries, and the grades of every method's rankings."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution import fisher
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import Method, method_settings, norm_settings
from concept_trak.attribution.query import query_batch
from concept_trak.attribution.query_paths import query_features
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.results import shows
from concept_trak.audit.worker import ModelWorker, StoreWorker, Work
from concept_trak.data.index import label_values
from concept_trak.data.shard import Shard
from concept_trak.evaluation.caption_groups import CaptionGains, caption_gains, carriers
from concept_trak.evaluation.damping_choice import query_separation
from concept_trak.evaluation.leaderboard import Leaderboard, LeaderboardLine
from concept_trak.evaluation.retrieval import Grades, grade, ranked_ids
from concept_trak.store.manifest import Audit, read_table, write_table
from concept_trak.store.records import Record
from concept_trak.store.tables import from_columns, from_rows

GradeRow = dict[str, float | int | str]
"""One graded ranking, with the columns of `GRADE_KINDS`."""
PLAIN = float("inf")
"""The damping of the plain inner product: the ranking tends to its ranking as the damping grows."""


@dataclass(frozen=True)
class BenchmarkQueryTask(Task):
    """A concept and a method whose query side is used. Each sample of the concept is one query."""

    method: Method
    concept: Concept

    @property
    def label(self) -> str:
        return self.concept.name


@dataclass(frozen=True)
class BenchmarkQueryResult:
    """The file of the features, relative to the audit's folder."""

    file: str


def benchmark_query_file(method: Method, concept: Concept) -> str:
    """The file of a concept's query features, named by a hash of the settings that decide their numbers.

    Methods with the same query side share a file. Concepts with the same prompt, such as the two factors of a pair,
    share one too, unless the direction depends on the prompt without the concept.
    """
    side = {"query": method_settings(method)["query"], **norm_settings(method)}
    key = {"text": concept.text, "seed": concept.seed, "samples": concept.samples, "image": concept.image}
    without = {"without": concept.without} if method.query.direction == "concept_reward" else {}
    settings = json.dumps(side | key | without, sort_keys=True)
    return f"queries/{hashlib.sha256(settings.encode()).hexdigest()[:16]}.parquet"


class BenchmarkQueryWorker(ModelWorker):
    """Writes phi_q of every sample of a concept to the store, unless the store has it."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._workspace = Workspace()

    def __call__(self, task: BenchmarkQueryTask, attempt: Attempt) -> BenchmarkQueryResult:
        name = benchmark_query_file(task.method, task.concept)
        audit = Audit(self.store, self.config.audit)
        if self.store.size(audit.name(name)) is None:
            batch = query_batch(self.denoiser, task.concept)
            (features,) = query_features(
                self.denoiser,
                self.config.projector,
                [task.method],
                task.concept,
                batch,
                self.batch_size(attempt),
                self._workspace,
            ).features
            kinds, phi = {"sample": "string", "phi": "vector"}, features.phi.cpu().float().numpy()
            write_table(audit, name, from_columns(kinds, {"sample": batch.ids, "phi": list(phi)}))
        return BenchmarkQueryResult(name)


@dataclass(frozen=True)
class GradeTask(Task):
    """The features of one method and one kind of query, for every concept and damping.

    Attributes:
        method: the name of the method.
        query_kind: `own` or `concept`.
        query: the method with that query.
        records: the parts with the method's features.
        plan: the shards, for their labels.
        dampings: the dampings to grade.
        each: samples of one query, whose feature is their mean. Queries have consecutive samples and share none.
    """

    method: str
    query_kind: str
    query: Method
    records: tuple[Record, ...]
    plan: tuple[Shard, ...]
    dampings: tuple[float, ...]
    each: int = 1

    @property
    def label(self) -> str:
        return f"{self.method}-{self.query_kind}"


@dataclass(frozen=True)
class GradeResult:
    """The grades of every concept, damping, sign and query."""

    rows: tuple[GradeRow, ...]


GRADE_KINDS = {"concept": "string", "query": "int32", "damping": "float64", "flipped": "int32",
               "base_rate": "float64", "average_precision": "float64", "precision_at_10": "float64",
               "recall_at_carriers": "float64", "gain_named": "float64", "gain_unnamed": "float64",
               "separation": "float64"}  # fmt: skip


@dataclass(frozen=True)
class RankingHead:
    """The first ids of the ranking by the mean of all queries' scores; as many as samples show the concept."""

    concept: str
    damping: float
    ids: tuple[str, ...]

    @classmethod
    def of(
        cls, concept: str, damping: float, scores: np.ndarray, ids: Sequence[str], relevant: np.ndarray
    ) -> "RankingHead":
        return cls(concept, damping, tuple(ranked_ids(scores.mean(1), ids)[: int(relevant.sum())]))


def ranking_file(method: str, query_kind: str) -> str:
    """The file of a method's ranking heads, relative to the audit's folder."""
    return f"rankings/{method}-{query_kind}.parquet"


def write_ranking(audit: Audit, method: str, query_kind: str, heads: Sequence[RankingHead]) -> None:
    """Write one row for each concept, damping and rank; ranks start at 1."""
    kinds = {"concept": "string", "damping": "float64", "rank": "int64", "sample_id": "string"}
    rows = [
        {"concept": head.concept, "damping": head.damping, "rank": rank, "sample_id": sample_id}
        for head in heads
        for rank, sample_id in enumerate(head.ids, 1)
    ]
    write_table(audit, ranking_file(method, query_kind), from_rows(kinds, rows))


class GradeWorker(StoreWorker):
    """Grades the rankings of all training samples by every query at every damping, with either sign of the scores."""

    def __call__(self, task: GradeTask, attempt: Attempt) -> GradeResult:
        ids, weight, phi = self._features(task)
        labels = dict(pair for shard in map(self.index, task.plan) for pair in label_values(shard))
        concepts = self.work.config.concepts
        queries = torch.cat([self._queries(task, concept) for concept in concepts])
        relevant = {c.name: np.array([shows(c, labels[i]) for i in ids]) for c in concepts}
        by_caption = {c.name: carriers(c, [labels[i] for i in ids]) for c in concepts}
        rows, heads = list[GradeRow](), list[RankingHead]()
        for damping, scores in _scores_by_damping(phi, queries, task.dampings):
            weighted = (weight[:, None] * scores).double().numpy()
            separation = query_separation(weighted, len(concepts))
            for c, own in zip(concepts, np.split(weighted, len(concepts), axis=1), strict=True):
                for sign in (1, -1):
                    grades = grade(sign * own, relevant[c.name], ids)
                    gains = caption_gains(sign * own, by_caption[c.name], ids)
                    rows += grade_rows(grades, gains, c.name, damping, int(sign < 0), relevant[c.name], separation)
                heads.append(RankingHead.of(c.name, damping, own, ids, relevant[c.name]))
        write_ranking(self.audit, task.method, task.query_kind, heads)
        return GradeResult(tuple(rows))

    def _features(self, task: GradeTask) -> tuple[list[str], Float[Tensor, " n"], Float[Tensor, "n k"]]:
        blocks = list(self.features(*task.records))
        ids = [i for names, _, _ in blocks for i in names]
        if not ids:
            raise UserError(
                f"no training sample has a feature of {task.method}: all are rejects. If their reason is "
                "no_direction, the model predicts the same for every caption and nothing can be ranked: choose another "
                "model or method"
            )
        return ids, torch.cat([weight for _, weight, _ in blocks]), torch.cat([phi for _, _, phi in blocks])

    def _queries(self, task: GradeTask, concept: Concept) -> Float[Tensor, "m k"]:
        table = read_table(self.audit, benchmark_query_file(task.query, concept))
        phi = torch.tensor(np.array(table["phi"].to_pylist(), np.float32))
        return phi.unflatten(0, (-1, task.each)).mean(1)


def _scores_by_damping(
    phi: Float[Tensor, "n k"], queries: Float[Tensor, "m k"], dampings: Sequence[float]
) -> Iterator[tuple[float, Float[Tensor, "n m"]]]:
    """(damping, scores): the finite dampings in their order, then the plain inner product if `PLAIN` is among them."""
    finite = [damping for damping in dampings if damping != PLAIN]
    yield from zip(finite, fisher.sweep(phi, queries, finite), strict=True)
    if PLAIN in dampings:
        yield PLAIN, phi @ queries.T


def grade_rows(
    grades: Grades,
    gains: CaptionGains,
    concept: str,
    damping: float,
    flipped: int,
    relevant: np.ndarray,
    separation: float = float("nan"),
) -> list[GradeRow]:
    """One row for each query, with the columns of `GRADE_KINDS`."""
    return [
        {
            "concept": concept,
            "query": i,
            "damping": damping,
            "flipped": flipped,
            "base_rate": float(relevant.mean()),
            "average_precision": float(grades.average_precision[i]),
            "precision_at_10": float(grades.precision_at_10[i]),
            "recall_at_carriers": float(grades.recall_at_carriers[i]),
            "gain_named": float(gains.named[i]),
            "gain_unnamed": float(gains.unnamed[i]),
            "separation": separation,
        }
        for i in range(len(grades.average_precision))
    ]


GRADE_COLUMNS = {"method": "string", "query_kind": "string", **GRADE_KINDS}
LEADERBOARD_COLUMNS = {"set": "string", "ranker": "string", "method": "string", "query_kind": "string",
                       "flipped": "int32", "evaluations": "int64", "damping": "float64", "merit": "float64",
                       "worst_cell": "string", "merit_per_model": "vector", "gain_in": "float64",
                       "gain_out": "float64", "precision_in": "float64", "precision_out": "float64",
                       "recall_in": "float64", "recall_out": "float64", "gap_low": "float64", "gap_high": "float64",
                       "gap_per_model": "vector", "mean_gap_low": "float64", "mean_gap_high": "float64",
                       "mean_gap_per_model": "vector", "gain_named": "float64", "gain_unnamed": "float64",
                       "unnamed_gap_low": "float64", "unnamed_gap_high": "float64"}  # fmt: skip


def leaderboard_row(line: LeaderboardLine, board: Leaderboard) -> dict[str, Any]:
    """One line with the columns of `LEADERBOARD_COLUMNS`."""
    pairs = {"gain": line.gain, "precision": line.precision, "recall": line.recall}
    intervals = {"gap": line.gap, "mean_gap": line.mean_gap, "unnamed_gap": line.unnamed_gap}
    return {
        "set": board.title,
        "ranker": str(line.ranker),
        **line.ranker._asdict(),
        "evaluations": board.evaluations[line.ranker.method],
        "damping": line.damping,
        "merit": line.merit,
        "worst_cell": line.worst,
        "merit_per_model": line.per_model,
        **{
            f"{name}_{side}": value
            for name, pair in pairs.items()
            for side, value in zip(("in", "out"), pair, strict=True)
        },
        **{
            f"{name}_{end}": value
            for name, pair in intervals.items()
            for end, value in zip(("low", "high"), pair, strict=True)
        },
        "gap_per_model": line.gap_per_model,
        "mean_gap_per_model": line.mean_gap_per_model,
        "gain_named": line.gain_named,
        "gain_unnamed": line.gain_unnamed,
    }
