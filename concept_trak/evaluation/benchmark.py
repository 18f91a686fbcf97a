"""The work of a benchmark: every query's own feature, every method's rankings at every damping, and their grades."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution import fisher
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import Method, method_settings
from concept_trak.attribution.query import query_batch, query_features
from concept_trak.audit.gram import StoreWorker
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.results import shows
from concept_trak.audit.worker import ModelWorker, Work
from concept_trak.data.format import label_values
from concept_trak.data.shard import Shard
from concept_trak.evaluation.leaderboard import Leaderboard, LeaderboardLine
from concept_trak.evaluation.retrieval import Grades, grade, ranked_ids
from concept_trak.store.manifest import Audit, read_table, write_table
from concept_trak.store.records import Record
from concept_trak.store.tables import from_columns

GradeRow = dict[str, float | int | str]
PLAIN = float("inf")
"""The damping of the plain inner product, to which the ranking tends."""


@dataclass(frozen=True)
class BenchmarkQueryTask:
    """A concept asked the way of one query side; each of its samples is kept apart."""

    method: Method
    concept: Concept

    @property
    def label(self) -> str:
        return self.concept.name

    @property
    def samples(self) -> int:
        return 0


def benchmark_query_file(method: Method, concept: Concept) -> str:
    """Named by what decides the numbers, so that methods with one query side share them.

    So do concepts with one prompt, as the two factors of a pair, where the side does not look at what they leave out.
    """
    side = {"query": method_settings(method)["query"], "unit": method.unit, "over": method.over}
    asked = {"text": concept.text, "seed": concept.seed, "samples": concept.samples, "image": concept.image}
    without = {"without": concept.without} if method.query.direction == "concept_reward" else {}
    what = json.dumps(side | asked | without, sort_keys=True)
    return f"inquiries/{hashlib.sha256(what.encode()).hexdigest()[:16]}.parquet"


class BenchmarkQueryWorker(ModelWorker):
    """phi_q of every sample of a concept, to the store; nothing is computed twice."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._workspace = Workspace()

    def __call__(self, item: BenchmarkQueryTask, attempt: Attempt) -> str:
        name = benchmark_query_file(item.method, item.concept)
        audit = Audit(self.store, self.config.audit)
        if self.store.size(audit.name(name)) is not None:
            return name
        batch, projector = query_batch(self.denoiser, item.concept), self.config.projector
        size, workspace = self.batch_size(attempt), self._workspace
        features = query_features(self.denoiser, projector, item.method, item.concept, batch, size, workspace)
        phi = features.phi.cpu().float().numpy()
        kinds = {"sample": "string", "phi": "vector"}
        write_table(audit, name, from_columns(kinds, {"sample": batch.ids, "phi": list(phi)}))
        return name


@dataclass(frozen=True)
class GradeTask:
    """The features of one method against its `own` queries or the `concept` query, for every concept and damping.

    `each`: query samples that make one query; disjoint runs of so many. `plan`: the shards, for their labels.
    """

    method: str
    asked: str
    query: Method
    records: tuple[Record, ...]
    plan: tuple[Shard, ...]
    dampings: tuple[float, ...]
    each: int = 1

    @property
    def label(self) -> str:
        return f"{self.method}-{self.asked}"

    @property
    def samples(self) -> int:
        return 0


GRADE_KINDS = {"concept": "string", "query": "int32", "damping": "float64", "flipped": "int32",
               "base_rate": "float64", "average_precision": "float64", "precision_at_10": "float64",
               "recall_at_carriers": "float64"}  # fmt: skip


@dataclass(frozen=True)
class RankingHead:
    """The head of one ranking, as long as there are samples that show the concept: what taught it most, by this method.

    The ranking is by the mean of all queries' scores.
    """

    concept: str
    damping: float
    ids: tuple[str, ...]

    @classmethod
    def of(
        cls, concept: str, damping: float, scores: np.ndarray, ids: Sequence[str], relevant: np.ndarray
    ) -> "RankingHead":
        return cls(concept, damping, tuple(ranked_ids(scores.mean(1), ids)[: int(relevant.sum())]))


def ranking_file(method: str, asked: str) -> str:
    return f"rankings/{method}-{asked}.parquet"


def write_ranking(audit: Audit, method: str, asked: str, tops: Sequence[RankingHead]) -> None:
    """One row per concept, damping and rank, from 1."""
    kinds = {"concept": "string", "damping": "float64", "rank": "int64", "sample_id": "string"}
    columns = {
        "concept": _long(tops, (t.concept for t in tops)),
        "damping": _long(tops, (t.damping for t in tops)),
        "rank": [rank for t in tops for rank in range(1, len(t.ids) + 1)],
        "sample_id": [i for t in tops for i in t.ids],
    }
    write_table(audit, ranking_file(method, asked), from_columns(kinds, columns))


def _long(tops: Sequence[RankingHead], values: Iterable[str | float]) -> list[str | float]:
    return list(chain.from_iterable([value] * len(t.ids) for t, value in zip(tops, values, strict=True)))


class GradeWorker(StoreWorker):
    """Rankings of all training samples by every query at every damping, with the scores' sign and against it."""

    def __call__(self, item: GradeTask, attempt: Attempt) -> list[GradeRow]:
        ids, weight, phi = self._features(item)
        labels = dict(pair for shard in item.plan for pair in label_values(shard, self.work.config.data))
        concepts = self.work.config.concepts
        queries = torch.cat([self._queries(item, c) for c in concepts])
        relevant = {c.name: np.array([shows(c, labels[i]) for i in ids]) for c in concepts}
        damped = [d for d in item.dampings if d != PLAIN]
        made = zip(damped, fisher.sweep(phi, queries, damped), strict=True)
        rows, tops = list[GradeRow](), list[RankingHead]()
        for damping, scores in [*made, *[(d, phi @ queries.T) for d in item.dampings if d == PLAIN]]:
            weighted = (weight[:, None] * scores).double().numpy()
            for c, own in zip(concepts, np.split(weighted, len(concepts), axis=1), strict=True):
                for sign in (1, -1):
                    graded = grade(sign * own, relevant[c.name], ids)
                    rows += grade_rows(graded, c.name, damping, int(sign < 0), relevant[c.name])
                tops.append(RankingHead.of(c.name, damping, own, ids, relevant[c.name]))
        write_ranking(self.audit, item.method, item.asked, tops)
        return rows

    def _features(self, item: GradeTask) -> tuple[list[str], Tensor, Tensor]:
        blocks = [block for record in item.records for block in self.features(record)]
        ids = [i for names, _, _ in blocks for i in names]
        if not ids:
            raise UserError(
                f"no training sample has a feature of {item.method}: all are rejects. Where they are no_direction, the "
                "model predicts the same whatever the caption says, and there is nothing to rank"
            )
        return ids, torch.cat([w for _, w, _ in blocks]), torch.cat([p for _, _, p in blocks])

    def _queries(self, item: GradeTask, concept: Concept) -> Tensor:
        table = read_table(self.audit, benchmark_query_file(item.query, concept))
        phi = torch.tensor(np.array(table["phi"].to_pylist(), np.float32))
        return phi.unflatten(0, (-1, item.each)).mean(1)


def grade_rows(graded: Grades, concept: str, damping: float, flipped: int, relevant: np.ndarray) -> list[GradeRow]:
    """One row per query, with the columns of `GRADE_KINDS`."""
    base = float(relevant.mean())
    return [
        dict(zip(GRADE_KINDS, (concept, i, damping, flipped, base, float(ap), float(p), float(r)), strict=True))
        for i, (ap, p, r) in enumerate(
            zip(graded.average_precision, graded.precision_at_10, graded.recall_at_carriers, strict=True)
        )
    ]


GRADE_COLUMNS = {"method": "string", "asked": "string", **GRADE_KINDS}
LEADERBOARD_COLUMNS = {"set": "string", "arm": "string", "method": "string", "asked": "string", "flipped": "int32",
             "evaluations": "int64", "damping": "float64", "merit": "float64", "worst_cell": "string",
             "merit_per_model": "vector", "gain_in": "float64", "gain_out": "float64", "precision_in": "float64",
             "precision_out": "float64", "recall_in": "float64", "recall_out": "float64", "behind_low": "float64",
             "behind_high": "float64", "behind_per_model": "vector", "mean_behind_low": "float64",
             "mean_behind_high": "float64", "mean_behind_per_model": "vector"}  # fmt: skip


def leaderboard_row(line: LeaderboardLine, one: Leaderboard) -> dict[str, Any]:
    """One line with the columns of `STANDINGS`."""
    sides = zip(("gain", "precision", "recall"), (line.gain, line.precision, line.recall), strict=True)
    return {
        "set": one.title,
        "arm": str(line.arm),
        **line.arm._asdict(),
        "evaluations": one.evaluations[line.arm.method],
        "damping": line.damping,
        "merit": line.merit,
        "worst_cell": line.worst,
        "merit_per_model": line.per_model,
        **{f"{name}_{where}": value for name, pair in sides for where, value in zip(("in", "out"), pair, strict=True)},
        "behind_low": line.behind[0],
        "behind_high": line.behind[1],
        "behind_per_model": line.behind_per_model,
        "mean_behind_low": line.mean_behind[0],
        "mean_behind_high": line.mean_behind[1],
        "mean_behind_per_model": line.mean_behind_per_model,
    }
