"""The pass over all parts that scores them: ends and a histogram of every column, and with `scores=all` all scores.

Parts stream through a worker; only the ends return to the driver.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution import ranking
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.ranking import Entry, ScoreSummary
from concept_trak.audit.aggregate import memberships, sums_table
from concept_trak.audit.heavy_groups import read_heavy_groups
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.retrieval_ranks import graded_concepts, showing, shows_column
from concept_trak.audit.score_sample import sampled_scores
from concept_trak.audit.score_spread import GroupSummary, QuerySpread
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.data.shard import Shard
from concept_trak.store.audit_files import Audit, ListedFile, write_listed
from concept_trak.store.consistency import REPAIR
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import graded_file, plain_column, scores_file, sums_file
from concept_trak.store.part import Block, Damaged
from concept_trak.store.queries import StoredQuery, read_query, require_alike
from concept_trak.store.records import Record
from concept_trak.store.tables import compute as pc
from concept_trak.store.tables import from_columns


@dataclass(frozen=True)
class ColumnEnds:
    """One column of scores over some shards: its best, its worst, its histogram, and for damped scores its spread."""

    top: list[Entry]
    bottom: list[Entry]
    histogram: list[int]
    spread: QuerySpread | None = None


@dataclass(frozen=True)
class ScoreTask(Task):
    """Consecutive parts to score for one method; with their shards, the scores are also summed by caption and label.

    `heavy` names the file with the labels and words that are summed by themselves; "" for all. `of` is the number of
    samples of all parts.
    """

    method: str
    records: tuple[Record, ...]
    shards: tuple[Shard, ...] = ()
    heavy: str = ""
    of: int = 0

    @property
    def first(self) -> str:
        """The shard whose name the files about all of the parts get."""
        return self.records[0].shard

    @property
    def label(self) -> str:
        return f"{self.method}-{self.records[0].shard}"

    @property
    def samples(self) -> int:
        return sum(record.rows for record in self.records)


@dataclass(frozen=True)
class ScoreResult:
    """The columns of some parts, by name; the files that were written; by concept how many samples show it; and of some
    samples the scores in the order of the columns (`sampled_scores`)."""

    method: str
    columns: dict[str, ColumnEnds]
    files: tuple[ListedFile, ...] = ()
    carriers: dict[str, int] = field(default_factory=dict)
    sample: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Queries:
    """The columns of scores with their vectors [m, k] and root mean squares: each concept solved, then plain.

    `groups` are the solved vectors of each concept's groups of samples.
    """

    columns: list[str]
    z: Float[Tensor, "m k"]
    scale: list[float]
    groups: list[Float32[Tensor, "_ k"] | None] = field(default_factory=list)

    def summary(self, top: int) -> "TaskSummary":
        """An empty summary of the scores of a task, with room for `top` entries at each end."""
        return TaskSummary(self, ScoreSummary(top, self.scale), GroupSummary(top, self.groups))


@dataclass(frozen=True)
class TaskSummary:
    """A summary of the scores of a task: ends, histograms, and the scores by groups of the queries' samples."""

    queries: Queries
    scores: ScoreSummary
    groups: GroupSummary

    def add(self, method: str, record: Record, block: Block, scores: Float32[Tensor, "n c"]) -> None:
        """Score the next rows of a part; `scores` is overwritten with w_i phi_i . z_q."""
        factor, groups = torch.from_dlpack(block.factor()), self.groups.z
        products = [(self.queries.z, scores)]
        if groups is not None:
            products.append((groups, torch.empty(len(scores), len(groups))))
        ranking.stored_products(torch.from_dlpack(block.unit), factor, products)
        self.add_scores(method, record, block.ids, scores, *(by_group for _, by_group in products[1:]))

    def add_scores(
        self,
        method: str,
        record: Record,
        ids: Sequence[str],
        scores: Float32[Tensor, "n c"],
        by_group: Float32[Tensor, "n g"] | None = None,
    ) -> None:
        """Add the next samples of a part by their scores, and by their scores by all groups if there are some."""
        require_finite_scores(scores, method, record)
        self.scores.add(scores, ids, record.shard)
        if by_group is not None:
            self.groups.add(by_group)

    def column_ends(self) -> dict[str, ColumnEnds]:
        """The ends and the histogram of every column, by its name.

        A column of zeros has no ends: every feature is zero, and an order of equal scores is no answer.
        """
        ends, rows = zip(*self.scores.ends_and_rows(), strict=True)
        damped = slice(0, None, 2)
        spreads = self.groups.spreads(rows[damped], self.queries.scale[damped], self.scores.samples)
        both = [spread for damped_spread in spreads for spread in (damped_spread, None)]
        columns = zip(self.queries.columns, ends, self.scores.histogram.tolist(), both, strict=True)
        scale = dict(zip(self.queries.columns, self.queries.scale, strict=True))
        return {
            name: ColumnEnds(own.top, own.bottom, counts, spread) if scale[name] else ColumnEnds([], [], counts)
            for name, own, counts, spread in columns
        }


SCORED_BYTES = 256 << 20  # some parts, so that reading and multiplying overlap, and a second or so of work


def score_tasks(
    method: str, records: Sequence[Record], plan: Sequence[Shard] = (), heavy: str = "", most: int = SCORED_BYTES
) -> Iterator[ScoreTask]:
    """All parts, in order, cut after every `most` bytes: the same items whatever the number of workers.

    `plan`: the shards of the parts, if their scores are also summed by groups; `heavy` is as of `ScoreTask`.
    """
    first, size, of = 0, 0, sum(record.rows for record in records)
    for end, record in enumerate(records, 1):
        size += record.bytes
        if size >= most or end == len(records):
            own, shards = tuple(records[first:end]), tuple(plan[first:end])
            yield ScoreTask(method=method, records=own, shards=shards, heavy=heavy, of=of)
            first, size = end, 0


class ScoreWorker(StoreWorker):
    """Some shards against every concept, damped and plain; with `scores=all` also to `scores/<shard>.parquet`, and with
    their shards also summed, to `sums/<first shard>.parquet`."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.queries = {method: read_queries(self.audit, work, method) for method in work.config.methods}

    def __call__(self, task: ScoreTask, attempt: Attempt) -> ScoreResult:
        queries, files = self.queries[task.method], list[ListedFile]()
        summary = queries.summary(self.work.config.top)
        scored, index, sample = list[Tensor](), list[pa.Table](), dict[str, tuple[float, ...]]()
        with closing(self.blocks(*task.records)) as coming:
            for record, shard in zip_longest(task.records, task.shards):
                ids, values = score_part(task.method, record, coming, summary)
                sample |= sampled_scores(ids, values, task.of)
                if self.work.config.scores == "all":
                    table = _scores_table(ids, queries.columns, values)
                    files.append(write_listed(self.audit, scores_file(task.method, record.shard), table))
                if shard is not None:
                    index.append(rows_of(self.index(shard), ids, record))
                    scored.append(values)
        scores = Scored(queries.columns, torch.cat(scored), pa.concat_tables(index)) if task.shards else None
        if scores is not None and self.work.config.aggregates:
            files.append(write_listed(self.audit, sums_file(task.method, task.first), self._sums(task, scores)))
        carriers = dict[str, int]()
        if scores is not None and (graded := graded_concepts(self.work.config)):
            table = scores.graded(graded)
            files.append(write_listed(self.audit, graded_file(task.method, task.first), table))
            carriers = {c.name: pc.sum(table[shows_column(c.name)]).as_py() or 0 for c in graded}
        columns = summary.column_ends()
        return ScoreResult(method=task.method, columns=columns, files=tuple(files), carriers=carriers, sample=sample)

    def _sums(self, task: ScoreTask, scores: "Scored") -> pa.Table:
        """The scores of a task summed by everything that its samples are counted under."""
        sources = [(shard.source, record.rows) for shard, record in zip(task.shards, task.records, strict=True)]
        heavy = read_heavy_groups(self.store, task.heavy)
        groups = list(memberships(scores.index, sources, heavy))
        return sums_table(scores.columns, scores.values.numpy(), groups)


def score_part(
    method: str, record: Record, coming: Iterator[Block], summary: TaskSummary
) -> tuple[list[str], Float[Tensor, "n c"]]:
    """The next part's own row groups, as many as its record has rows; its ids and scores, which `summary` has too."""
    ids, queries = list[str](), summary.queries
    values = torch.empty(record.rows, len(queries.columns))
    while len(ids) < record.rows:
        block = next(coming)
        require_width(block, queries.z.shape[1], record)
        scores = values[len(ids) : len(ids) + len(block.ids)]
        summary.add(method, record, block, scores)
        ids += block.ids
    return ids, values


@dataclass(frozen=True)
class Scored:
    """Samples with their scores, by column, and with their rows of the data's index."""

    columns: Sequence[str]
    values: Float[Tensor, "n c"]
    index: pa.Table

    def graded(self, concepts: Sequence[Concept]) -> pa.Table:
        """The scores about these concepts, and whether each sample shows them."""
        numbers = dict(zip(self.columns, self.values.T.numpy(), strict=True))
        scores = {name: numbers[name] for c in concepts for name in (c.name, plain_column(c.name))}
        shows = {shows_column(c.name): showing(self.index, c) for c in concepts}
        return pa.table({"sample_id": self.index["id"], **scores, **shows})


def _scores_table(ids: Sequence[str], columns: Sequence[str], values: Float[Tensor, "n c"]) -> pa.Table:
    kinds = {"sample_id": "string", **dict.fromkeys(columns, "float32")}
    return from_columns(kinds, {"sample_id": ids, **dict(zip(columns, values.T.numpy(), strict=True))})


def rows_of(shard: Shard, ids: Sequence[str], record: Record) -> pa.Table:
    """The rows of a shard's index that are these samples, in their order. Raises Damaged for a sample of another."""
    rows = pc.index_in(pa.array(ids, pa.string()), value_set=shard.index_table["id"].combine_chunks())
    if rows.null_count:
        part = FeatureSet(record.fingerprint).part(record.shard)
        stranger = min(i for i, row in zip(ids, rows.to_pylist(), strict=True) if row is None)
        raise Damaged(f"{part} has a sample {stranger!r} that is not in its source. {REPAIR}")
    return shard.index_table.take(rows)


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
    queries = list[StoredQuery]()
    for concept in work.config.concepts:
        query = read_query(audit, method, concept.name)
        require_alike(query, queries)
        queries.append(query)
    return stack_queries(queries)


def stack_queries(queries: Sequence[StoredQuery]) -> Queries:
    """The columns of scores of some queries of one method, in their order."""
    return Queries(
        columns=[name for query in queries for name in (query.concept, plain_column(query.concept))],
        z=torch.from_numpy(np.stack([vector for query in queries for vector in (query.solved, query.phi)])),
        scale=[spread for query in queries for spread in (query.spread_solved, query.spread_phi)],
        groups=[None if query.groups is None else torch.from_numpy(query.groups) for query in queries],
    )
