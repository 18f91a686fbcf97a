"""Exact AP, P@10 and recall@carriers of a ranking that is too large for one process, computed by ranges of scores.

A range holds the samples with low < score <= high. The number of samples that rank before a range, and the number of
carriers among them (samples that show the concept), determine the ranks inside the range, and its part of every sum.
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
"""Samples of one range: a few hundred megabytes of ids and scores."""
SAMPLED = 32  # tables whose scores decide the ranges
FORMS = ("damped", "plain")
Range = tuple[float, float]  # low, high
EVERYTHING: Range = (-math.inf, math.inf)
MapTasks = Callable[[str, type[Any], Sequence[Any]], Iterator[tuple[Any, Any]]]


def column(concept: str, form: str) -> str:
    """The name of a concept's column of scores: `form` is damped or plain."""
    return concept if form == "damped" else plain_column(concept)


def graded_concepts(config: AuditConfig) -> list[Concept]:
    """The concepts whose rankings are graded: those with a `truth`, if the audit keeps all scores."""
    return [concept for concept in config.concepts if concept.truth] if config.scores == "all" else []


def shows_column(concept: str) -> str:
    """The name of the column that is true for samples that show a concept."""
    return f"{concept}~shows"


def showing(index: pa.Table, concept: Concept) -> pa.ChunkedArray:
    """Whether each row of an index shows a concept: every label of the concept's `truth` has its value."""
    mask = pa.chunked_array([pa.array(np.ones(index.num_rows, bool))])
    for name, value in concept.truth.items():
        mask = pc.and_(mask, pc.fill_null(pc.equal(index[f"{LABEL}{name}"], value), False))
    return mask


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
        before: the number of samples, and the number of carriers, that rank before the range.
        carriers: the number of carriers in the whole ranking.
    """

    within: Range
    before: tuple[int, int]
    carriers: int


@dataclass(frozen=True)
class RankResult:
    """A range's part of the sums.

    Attributes:
        precision: the sum of precision@rank over the ranks of its carriers.
        first_ten: its carriers among the first ten ranks of the ranking.
        first_carriers: its carriers among as many first ranks as the ranking has carriers.
    """

    precision: float
    first_ten: int
    first_carriers: int


class RankWorker(StoreWorker):
    """Ranks the samples of a range; ties are ordered by sample id."""

    def __call__(self, task: RankTask, attempt: Attempt) -> RankResult:
        score, relevant, ids = read_range(self, task, task.within)
        hits = np.flatnonzero(relevant[np.lexsort((ids, -score))])
        ranks = task.before[0] + hits + 1
        precision = np.arange(task.before[1] + 1, task.before[1] + len(hits) + 1) / ranks
        return RankResult(float(precision.sum()), int((ranks <= 10).sum()), int((ranks <= task.carriers).sum()))


@dataclass(frozen=True)
class RangeCountTask(GradedRanking):
    """A range of a ranking whose samples are counted."""

    within: Range


@dataclass(frozen=True)
class RangeCountResult:
    """The number of samples of a range, and of carriers among them."""

    samples: int
    carriers: int


class RangeCountWorker(StoreWorker):
    """Counts the samples and the carriers of a range."""

    def __call__(self, task: RangeCountTask, attempt: Attempt) -> RangeCountResult:
        _, relevant, _ = read_range(self, task, task.within, with_ids=False)
        return RangeCountResult(len(relevant), int(relevant.sum()))


@dataclass(frozen=True)
class CutTask(GradedRanking):
    """A ranking that is cut into `ranges` ranges."""

    ranges: int


@dataclass(frozen=True)
class CutResult:
    """The scores between the ranges, in descending order; fewer if many scores are equal."""

    edges: tuple[float, ...]


class CutWorker(StoreWorker):
    """Chooses ranges with about equal numbers of samples, from the scores in some of the tables."""

    def __call__(self, task: CutTask, attempt: Attempt) -> CutResult:
        step = max(1, len(task.tables) // SAMPLED)
        subset = GradedRanking(task.method, task.concept, task.form, task.tables[::step])
        score, _, _ = read_range(self, subset, EVERYTHING, with_ids=False)
        shares = np.arange(task.ranges - 1, 0, -1) / task.ranges
        edges = np.quantile(score, shares, method="nearest").tolist() if len(score) else []
        return CutResult(tuple(dict.fromkeys(edges)))


def read_range(
    worker: StoreWorker, task: GradedRanking, within: Range, with_ids: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, whether each sample is a carrier, ids) of the samples of a range; no ids without `with_ids`."""
    names = [column(task.concept, task.form), shows_column(task.concept), *(["sample_id"] if with_ids else [])]

    def read(first: str) -> tuple[np.ndarray, ...]:
        table = read_columns(worker.store, worker.audit.name(graded_file(task.method, first)), names)
        score = table[names[0]].to_numpy()
        inside = (within[0] < score) & (score <= within[1])
        rows = table.filter(pa.array(inside))
        ids = np.array(rows["sample_id"].to_pylist(), dtype=str) if with_ids else np.zeros(0, str)
        return score[inside], rows[names[1]].to_numpy(), ids

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

    The result has only concepts with a `truth`; without `scores=all` it is empty.

    Args:
        config: the audit.
        tables: by method, the first shard of each graded table.
        samples: by method, the number of samples with a score.
        carriers: by method and concept, the number of samples that show the concept.
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
    """Samples and carriers of every range except the last one of each ranking, whose counts no other range needs."""
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
