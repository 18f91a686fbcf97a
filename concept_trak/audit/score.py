"""The pass over all parts that scores them: ends and a histogram of every column, and with `scores=all` all scores.

Parts stream through a worker; only the ends return to the driver.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution import ranking
from concept_trak.attribution.ranking import Entry, ScoreSummary
from concept_trak.audit.aggregate import Sums, groups_of, sums_table
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.data.columns import annotations
from concept_trak.data.shard import Shard
from concept_trak.store.consistency import REPAIR
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit, plain_column, scores_file, sums_file, write_table
from concept_trak.store.part import Block, Damaged
from concept_trak.store.queries import StoredQuery, read_query, require_alike
from concept_trak.store.records import Record
from concept_trak.store.tables import from_columns


@dataclass(frozen=True)
class ColumnEnds:
    """One column of scores over some shards: its best, its worst, and its histogram."""

    top: list[Entry]
    bottom: list[Entry]
    histogram: list[int]


@dataclass(frozen=True)
class ScoreTask(Task):
    """Consecutive parts to score for one method; with their shards, the scores are also summed by caption and label."""

    method: str
    records: tuple[Record, ...]
    shards: tuple[Shard, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.method}-{self.records[0].shard}"

    @property
    def samples(self) -> int:
        return sum(record.rows for record in self.records)


@dataclass(frozen=True)
class ScoreResult:
    """The columns of some parts, by name."""

    method: str
    columns: dict[str, ColumnEnds]


@dataclass(frozen=True)
class Queries:
    """The columns of scores with their vectors [m, k] and root mean squares: each concept solved, then plain."""

    columns: list[str]
    z: Float[Tensor, "m k"]
    scale: list[float]


SCORED_BYTES = 256 << 20  # some parts, so that reading and multiplying overlap, and a second or so of work


def score_tasks(method: str, records: Sequence[Record], plan: Sequence[Shard] = ()) -> Iterator[ScoreTask]:
    """All parts, in order, cut after every SCORED_BYTES: the same items whatever the number of workers.

    `plan`: the shards of the parts, if their scores are to be summed too.
    """
    first, size = 0, 0
    for end, record in enumerate(records, 1):
        size += record.bytes
        if size >= SCORED_BYTES or end == len(records):
            yield ScoreTask(method, tuple(records[first:end]), tuple(plan[first:end]))
            first, size = end, 0


class ScoreWorker(StoreWorker):
    """Some shards against every concept, damped and plain; with `scores=all` also to `scores/<shard>.parquet`, and with
    their shards also summed, to `sums/<first shard>.parquet`."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.queries = {method: read_queries(self.audit, work, method) for method in work.config.methods}

    def __call__(self, task: ScoreTask, attempt: Attempt) -> ScoreResult:
        queries = self.queries[task.method]
        kept, sums = ScoreSummary(self.work.config.top, queries.scale), Sums(queries.columns)
        with closing(self.blocks(*task.records)) as coming:
            for record, shard in zip_longest(task.records, task.shards):
                ids, values = self._shard(task.method, record, coming, queries, kept)
                if shard is not None:
                    texts = annotations(shard, self.work.config.data)
                    require_known(ids, texts, record)
                    sums.add_scores(values.numpy(), [groups_of(texts[i], shard) for i in ids])
        if task.shards:
            write_table(self.audit, sums_file(task.method, task.records[0].shard), sums_table(sums))
        columns = zip(queries.columns, kept.ends(), kept.histogram.tolist(), strict=True)
        return ScoreResult(
            task.method, {name: ColumnEnds(ends.top, ends.bottom, counts) for name, ends, counts in columns}
        )

    def _shard(
        self, method: str, record: Record, coming: Iterator[Block], queries: Queries, kept: ScoreSummary
    ) -> tuple[list[str], Float[Tensor, "n c"]]:
        """The next shard's own row groups, as many as its record has rows; its ids and scores."""
        ids: list[str] = []
        values = torch.empty(record.rows, len(queries.columns))
        while len(ids) < record.rows:
            block = next(coming)
            require_width(block, queries.z.shape[1], record)
            scores = values[len(ids) : len(ids) + len(block.ids)]
            with np.errstate(over="ignore"):
                factor = torch.from_dlpack(block.weight * block.scale)
            unit = torch.from_dlpack(block.unit)
            ranking.stored_scores(unit, factor, queries.z, scores)
            require_finite_scores(scores, method, record)
            kept.add(scores, block.ids, record.shard)
            ids += block.ids
        if self.work.config.scores == "all":
            kinds = {"sample_id": "string", **dict.fromkeys(queries.columns, "float32")}
            numbers = zip(queries.columns, values.T.numpy(), strict=True)
            table = from_columns(kinds, {"sample_id": ids, **dict(numbers)})
            write_table(self.audit, scores_file(method, record.shard), table)
        return ids, values


def require_known(ids: Sequence[str], known: Collection[str], record: Record) -> None:
    """Check that a part has samples of its source only. Raises Damaged."""
    if strangers := set(ids).difference(known):
        part = FeatureSet(record.fingerprint).part(record.shard)
        raise Damaged(f"{part} has a sample {min(strangers)!r} that is not in its source. {REPAIR}")


def require_width(block: Block, width: int, record: Record) -> None:
    """Check that features are as wide as the queries. Raises Damaged."""
    if block.unit.shape[1] != width:
        part = FeatureSet(record.fingerprint).part(record.shard)
        raise Damaged(f"{part} has features of {block.unit.shape[1]} numbers, and the queries have {width}. {REPAIR}")


def require_finite_scores(values: Float[Tensor, "n c"], method: str, record: Record) -> None:
    """Check that finite features and queries have finite products.

    Raises:
        UserError: a product is larger than float32 holds.
    """
    if not torch.isfinite(values).all():
        raise UserError(
            f"a score of {method} is larger than float32 holds: the weights in "
            f"{FeatureSet(record.fingerprint).part(record.shard)} or the queries have numbers of that size; expected "
            "scores within 3e38. Choose another method, or a larger damping"
        )


def read_queries(audit: Audit, work: Work, method: str) -> Queries:
    """The queries of an audit for one method, in the order of its concepts."""
    columns, rows, scale, queries = [], [], [], list[StoredQuery]()
    for concept in work.config.concepts:
        query = read_query(audit, method, concept.name)
        require_alike(query, queries)
        queries.append(query)
        columns += [concept.name, plain_column(concept.name)]
        rows += [query.solved, query.phi]
        scale += [query.spread_solved, query.spread_phi]
    return Queries(columns, torch.from_numpy(np.stack(rows)), scale)


FORMS = ("damped", "plain")


def column(concept: str, form: str) -> str:
    """The name of a concept's column of scores in one form."""
    return concept if form == "damped" else plain_column(concept)
