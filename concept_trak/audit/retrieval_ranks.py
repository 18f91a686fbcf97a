"""AP, P@10 and recall@carriers of a ranking that is in no process as a whole: exact, by counting in ranges of scores.

A range holds the samples with low < score <= high. Once it is known how many samples, and how many that show the
concept, rank before it, each of its own ranks is known, and so is its part of every sum.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np
import pyarrow as pa

from concept_trak.attribution.concept import Concept
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import StoreWorker
from concept_trak.config import AuditConfig
from concept_trak.data.index import LABEL
from concept_trak.store.manifest import graded_file, plain_column
from concept_trak.store.records import READERS
from concept_trak.store.tables import compute as pc
from concept_trak.store.tables import read_columns

RANGE_ROWS = 1 << 24
"""Samples that are ranked together: some hundred megabytes of ids and scores."""
SAMPLED = 32  # tables that ranges are chosen from
FORMS = ("damped", "plain")
Range = tuple[float, float]  # low, high
EVERYTHING: Range = (-math.inf, math.inf)
MapTasks = Callable[[str, type[Any], Sequence[Any]], Iterator[tuple[Any, Any]]]


def column(concept: str, form: str) -> str:
    """The name of a concept's column of scores in one form."""
    return concept if form == "damped" else plain_column(concept)


def graded_concepts(config: AuditConfig) -> list[Concept]:
    """The concepts whose rankings are graded: all scores are kept, and labels say who shows them."""
    return [concept for concept in config.concepts if concept.truth] if config.scores == "all" else []


def shows_column(concept: str) -> str:
    """The column that says which samples show a concept."""
    return f"{concept}~shows"


def showing(known: pa.Table, concept: Concept) -> pa.ChunkedArray:
    """Which rows of an index show a concept: all labels of its truth have the value."""
    there = pa.chunked_array([pa.array(np.ones(known.num_rows, bool))])
    for name, value in concept.truth.items():
        there = pc.and_(there, pc.fill_null(pc.equal(known[f"{LABEL}{name}"], value), False))
    return there


@dataclass(frozen=True)
class GradedRanking(Task):
    """One ranking: the column of scores of a method, and the first shard of each table that holds it."""

    method: str
    concept: str
    form: str
    tables: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.method}-{self.concept}-{self.form}"


@dataclass(frozen=True)
class RankTask(GradedRanking):
    """One range of a ranking.

    Attributes:
        within: the range.
        before: samples, and samples that show the concept, that rank before it.
        carriers: how many samples show the concept in all.
    """

    within: Range
    before: tuple[int, int]
    carriers: int


@dataclass(frozen=True)
class RankResult:
    """A range's part of the sums.

    Attributes:
        precision: the sum of precision@rank over the ranks of samples that show the concept.
        first_ten, first_carriers: those among the first ten, and among as many as there are carriers.
    """

    precision: float
    first_ten: int
    first_carriers: int


class RankWorker(StoreWorker):
    """Ranks the samples of a range, ties by their ids."""

    def __call__(self, task: RankTask, attempt: Attempt) -> RankResult:
        score, relevant, ids = read_range(self, task, task.within)
        hits = np.flatnonzero(relevant[np.lexsort((ids, -score))])
        ranks = task.before[0] + hits + 1
        precision = np.arange(task.before[1] + 1, task.before[1] + len(hits) + 1) / ranks
        return RankResult(float(precision.sum()), int((ranks <= 10).sum()), int((ranks <= task.carriers).sum()))


@dataclass(frozen=True)
class RangeCountTask(GradedRanking):
    """A range of a ranking, to be counted."""

    within: Range


@dataclass(frozen=True)
class RangeCountResult:
    """Samples of a range, and those that show the concept."""

    samples: int
    carriers: int


class RangeCountWorker(StoreWorker):
    """Counts the samples of a range."""

    def __call__(self, task: RangeCountTask, attempt: Attempt) -> RangeCountResult:
        _, relevant, _ = read_range(self, task, task.within, with_ids=False)
        return RangeCountResult(len(relevant), int(relevant.sum()))


@dataclass(frozen=True)
class CutTask(GradedRanking):
    """A ranking to be cut into some ranges."""

    ranges: int


@dataclass(frozen=True)
class CutResult:
    """The scores between the ranges, falling; fewer where many scores are equal."""

    edges: tuple[float, ...]


class CutWorker(StoreWorker):
    """Chooses ranges of about as many samples, from some of the tables."""

    def __call__(self, task: CutTask, attempt: Attempt) -> CutResult:
        step = max(1, len(task.tables) // SAMPLED)
        some = GradedRanking(task.method, task.concept, task.form, task.tables[::step])
        score, _, _ = read_range(self, some, EVERYTHING, with_ids=False)
        shares = np.arange(task.ranges - 1, 0, -1) / task.ranges
        edges = np.quantile(score, shares, method="nearest").tolist() if len(score) else []
        return CutResult(tuple(dict.fromkeys(edges)))


def read_range(
    worker: StoreWorker, task: GradedRanking, within: Range, with_ids: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, whether each shows the concept, and ids of the samples of a range; no ids where they are not needed."""
    names = [column(task.concept, task.form), shows_column(task.concept), *(["sample_id"] if with_ids else [])]

    def read(first: str) -> tuple[np.ndarray, ...]:
        table = read_columns(worker.store, worker.audit.name(graded_file(task.method, first)), names)
        score = table[names[0]].to_numpy()
        inside = (within[0] < score) & (score <= within[1])
        kept = table.filter(pa.array(inside))
        ids = np.array(kept["sample_id"].to_pylist(), dtype=str) if with_ids else np.zeros(0, str)
        return score[inside], kept[names[1]].to_numpy(), ids

    with ThreadPoolExecutor(READERS) as readers:
        scores, relevant, ids = zip(*readers.map(read, task.tables), strict=True)
    return np.concatenate(scores), np.concatenate(relevant), np.concatenate(ids)


def retrieval_metrics(
    config: AuditConfig,
    tables: dict[str, tuple[str, ...]],
    samples: dict[str, int],
    carriers: dict[tuple[str, str], int],
    run: MapTasks,
) -> dict[str, dict[str, dict[str, float]]]:
    """AP, base rate, P@10 and recall@carriers, as metrics[concept][column of the method and form].

    Empty without `scores=all`, and for concepts without `truth`.

    Args:
        config: the audit.
        tables: by method, the first shard of each graded table.
        samples: by method, how many have a score.
        carriers: by method and concept, how many show it.
        run: runs the tasks of a stage.
    """
    rankings = [GradedRanking(m, c.name, f, tables[m]) for m, c, f in product(tables, graded_concepts(config), FORMS)]
    ranges = _ranges(rankings, samples, run)
    counts = _counts(ranges, run)
    tasks = []
    for ranking, own in ranges.items():
        befores = accumulate(counts[ranking], lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=(0, 0))
        total = carriers[ranking.method, ranking.concept]
        tasks += [RankTask(**vars(ranking), within=w, before=b, carriers=total) for w, b in zip(own, befores)]  # noqa: B905
    parts: dict[GradedRanking, list[RankResult]] = {}
    for task, part in run("rank", RankWorker, tasks):
        parts.setdefault(GradedRanking(task.method, task.concept, task.form, task.tables), []).append(part)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for ranking in rankings:
        total = carriers[ranking.method, ranking.concept]
        measures = _measures(parts[ranking], samples[ranking.method], total)
        result.setdefault(ranking.concept, {})[column(ranking.method, ranking.form)] = measures
    return result


def _ranges(
    rankings: Sequence[GradedRanking], samples: dict[str, int], run: MapTasks
) -> dict[GradedRanking, list[Range]]:
    """The ranges of each ranking, the best scores first."""
    count = {r: -(-samples[r.method] // RANGE_ROWS) for r in rankings}
    cuts = [CutTask(**vars(r), ranges=n) for r, n in count.items() if n > 1]
    edges = {(t.method, t.concept, t.form): result.edges for t, result in run("cut", CutWorker, cuts)} if cuts else {}
    ranges = {}
    for r in rankings:
        between = (math.inf, *edges.get((r.method, r.concept, r.form), ()), -math.inf)
        ranges[r] = [(low, high) for high, low in pairwise(between)]
    return ranges


def _counts(ranges: dict[GradedRanking, list[Range]], run: MapTasks) -> dict[GradedRanking, list[tuple[int, int]]]:
    """Samples and carriers of every range but the last of each ranking, before which nothing has to be known."""
    tasks = [RangeCountTask(**vars(r), within=within) for r, own in ranges.items() for within in own[:-1]]
    results = (
        {(t.label, t.within): (x.samples, x.carriers) for t, x in run("count", RangeCountWorker, tasks)}
        if tasks
        else {}
    )
    return {r: [results[r.label, within] for within in own[:-1]] for r, own in ranges.items()}


def _measures(parts: Sequence[RankResult], samples: int, carriers: int) -> dict[str, float]:
    return {
        "average_precision": math.fsum(part.precision for part in parts) / carriers if carriers else 0.0,
        "base_rate": carriers / max(1, samples),
        "precision_at_10": sum(part.first_ten for part in parts) / max(1, min(10, samples)),
        "recall_at_carriers": sum(part.first_carriers for part in parts) / max(1, carriers),
    }
