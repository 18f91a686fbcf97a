"""From features to scores without ever holding them all: Grams by group, one solve, and a pass that keeps the ends.

Workers read parts from the store and return small records. The order of every sum is fixed by the plan, so a sum done
twice is the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import fisher, scoring
from concept_trak.fisher import Gram
from concept_trak.layout import gram_file, plain, query_file, scores_file
from concept_trak.scoring import Entry, TopK, bins
from concept_trak.stages import Attempt, Work
from concept_trak.store.ahead import ahead
from concept_trak.store.codec import blocks
from concept_trak.store.commit import Store
from concept_trak.store.grams import encode_gram, read_gram, write_gram
from concept_trak.store.manifest import Audit, read_table, write_bytes, write_table
from concept_trak.store.records import Record, read_part
from concept_trak.store.tables import from_columns


@dataclass(frozen=True)
class Group:
    """Shards whose Gram is one file, of one method."""

    method: str
    name: str
    records: tuple[Record, ...]


class OnStore:
    """A worker that needs the store and no model."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(max(1, int(work.config.cluster.cpus)))
        self.work, self.store = work, Store(work.config.store)
        self.audit = Audit(self.store, work.config.audit)

    def features(self, *records: Record) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """(ids, weight [n], phi [n, k]) of each row group of the parts, in order, in float32.

        Each part is checked against its record. The next one is read meanwhile, so two are in memory, however many.
        """
        for data in ahead(read_part(self.store, record) for record in records):
            for block in blocks(data):
                yield block.ids, torch.from_numpy(block.weight.copy()), torch.from_numpy(block.phi())


class SumGroup(OnStore):
    """One group: the sum of phi phi^T over its shards, in order, to `grams/<group>.safetensors`."""

    def __call__(self, group: Group, attempt: Attempt) -> str:
        fp = self.work.fingerprints[group.method]
        total: Gram | None = None
        for _, _, phi in self.features(*group.records):
            total = fisher.gram(phi) if total is None else total + fisher.gram(phi)
        if total is not None:
            write_gram(self.store, fp, group.name, total.matrix.numpy(), total.count)
        return group.name if total is not None else ""


@dataclass(frozen=True)
class System:
    """One method's linear system: its groups, in plan order, and phi_q of each concept.

    `records` are the parts, which the dual form reads.
    """

    method: str
    groups: tuple[str, ...]
    phi: tuple[tuple[float, ...], ...]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Solution:
    """z of each concept with its relative residual, and what it was solved with.

    `spread` is the root mean square that the concept's scores will have, damped and plain.
    """

    method: str
    count: int
    trace: float
    z: tuple[tuple[float, ...], ...]
    residual: tuple[float, ...]
    lam: float
    spread: tuple[tuple[float, float], ...]


class Solve(OnStore):
    """K from its groups' sums, to `gram.safetensors`; then z = (K + lambda I)^-1 phi_q of every concept.

    In the dual form when there are fewer samples than features.
    """

    def __call__(self, system: System, attempt: Attempt) -> Solution:
        gram, queries = self._sum(system), torch.tensor(system.phi, dtype=torch.float64)
        write_bytes(self.audit, gram_file(system.method), encode_gram(gram.matrix.numpy(), gram.count))
        lam = gram.damped(self.work.config.damping)
        if gram.count < len(gram.matrix):
            # All of them at once: they are fewer rows than K has, so less memory than K itself.
            phi = torch.cat([phi for _, _, phi in self.features(*system.records)])
            solved = fisher.solve_dual(phi, lam, queries)
        else:
            solved = fisher.solve(gram.matrix, lam, queries)
        spread = tuple(
            (scoring.spread(z, gram.matrix, gram.count), scoring.spread(q, gram.matrix, gram.count))
            for z, q in zip(solved.z, queries, strict=True)
        )
        z, residual = tuple(map(tuple, solved.z.tolist())), tuple(solved.residual.tolist())
        return Solution(system.method, gram.count, gram.trace, z, residual, lam, spread)

    def _sum(self, system: System) -> Gram:
        fp = self.work.fingerprints[system.method]
        grams = ahead(read_gram(self.store, fp, name) for name in system.groups)
        return fisher.total(Gram(torch.from_numpy(matrix), count) for matrix, count in grams)


@dataclass(frozen=True)
class Column:
    """What one shard says about one column of scores: its best, its worst, and its histogram."""

    top: list[Entry]
    bottom: list[Entry]
    histogram: list[int]


@dataclass(frozen=True)
class Scoring:
    """One part to be scored for one method."""

    method: str
    record: Record


@dataclass(frozen=True)
class Scored:
    """One part's columns, by name."""

    method: str
    columns: dict[str, Column]


@dataclass(frozen=True)
class Queries:
    """The columns of scores with their vectors [m, k] and root mean squares: each concept solved, then plain."""

    columns: list[str]
    z: Float[Tensor, "m k"]
    scale: list[float]


class Score(OnStore):
    """One shard against every concept, damped and plain; with `scores=all` also to `scores/<shard>.parquet`.

    An item is one part, and a worker learns of the next when it is done with this one, so nothing is read ahead: while
    one worker waits for storage the others compute.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.queries = {method: read_queries(self.audit, work, method) for method in work.config.methods}

    def __call__(self, item: Scoring, attempt: Attempt) -> Scored:
        queries, ids, made = self.queries[item.method], [], []
        for names, weight, phi in self.features(item.record):
            ids += names
            made.append(scoring.scores(phi, weight, queries.z))
        values = torch.cat(made) if made else torch.zeros(0, len(queries.columns))
        shard = item.record.shard
        if self.work.config.scores == "all":
            kinds = {"sample_id": "string", **dict.fromkeys(queries.columns, "float32")}
            numbers = zip(queries.columns, values.T.numpy(), strict=True)
            table = from_columns(kinds, {"sample_id": ids, **dict(numbers)})
            write_table(self.audit, scores_file(item.method, shard), table)
        columns = zip(queries.columns, values.T, queries.scale, strict=True)
        return Scored(item.method, {name: self._column(ids, v, scale, shard) for name, v, scale in columns})

    def _column(self, ids: list[str], values: Tensor, scale: float, shard: str) -> Column:
        ends = TopK(self.work.config.top)
        ends.add([(v, sample, shard) for v, sample in zip(values.tolist(), ids, strict=True)])
        return Column(ends.top, ends.bottom, bins(values, scale))


def read_queries(audit: Audit, work: Work, method: str) -> Queries:
    """What `queries/` of an audit says, in the order of its concepts."""
    columns, rows, scale = [], [], []
    for concept in work.config.concepts:
        row = read_table(audit, query_file(method, concept.name)).to_pylist()[0]
        for name, vector in ((concept.name, "solved"), (plain(concept.name), "phi")):
            columns.append(name)
            rows.append(np.asarray(row[vector], np.float32))
            scale.append(row[f"spread_{vector}"])
    return Queries(columns, torch.from_numpy(np.stack(rows)), scale)
