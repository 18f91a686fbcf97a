"""From features to what scores them: Grams summed by group of shards, and one linear solve for each method.

Workers read parts from the store and return small records. The plan fixes the order of every sum, so that a sum done
twice has the same bytes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution import fisher, ranking
from concept_trak.attribution.fisher import Gram, stored_gram
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.query_features import QueryResult
from concept_trak.audit.worker import StoreWorker
from concept_trak.store.consistency import ExpectedGram
from concept_trak.store.grams import encode_gram, read_gram, write_gram
from concept_trak.store.manifest import gram_file, write_bytes
from concept_trak.store.prefetch import prefetch
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record


@dataclass(frozen=True)
class GramTask:
    """Shards whose Gram is one file, of one method."""

    method: str
    name: str
    records: tuple[Record, ...]

    @property
    def expected(self) -> ExpectedGram:
        """What the sum over the group has, by the records of its shards."""
        squares = math.fsum(record.sum_squares for record in self.records)
        return ExpectedGram(self.name, sum(record.rows for record in self.records), squares)

    @property
    def label(self) -> str:
        return f"{self.method}-{self.name}"

    @property
    def samples(self) -> int:
        return 0


@dataclass(frozen=True)
class GramResult:
    """The name of the group that was summed; empty where it has no rows."""

    name: str


class GramWorker(StoreWorker):
    """One group: the sum of phi phi^T over its shards, in order, to `grams/<group>.safetensors`."""

    def __call__(self, task: GramTask, attempt: Attempt) -> GramResult:
        blocks = self.blocks(*task.records)
        gram = stored_gram((torch.from_dlpack(block.unit), torch.from_dlpack(block.scale)) for block in blocks)
        if gram is None:
            return GramResult("")
        write_gram(self.store, self.work.features[task.method], task.name, gram.matrix.numpy(), gram.count)
        return GramResult(task.name)


@dataclass(frozen=True)
class SolveTask:
    """One method's linear system: its groups, in plan order, and phi_q of each concept.

    `records` are the parts, which the dual form reads.
    """

    method: str
    groups: tuple[ExpectedGram, ...]
    phi: Float[np.ndarray, "m k"]
    records: tuple[Record, ...]

    @property
    def label(self) -> str:
        return self.method

    @property
    def samples(self) -> int:
        return 0


@dataclass(frozen=True)
class SolveResult:
    """z of each concept with its relative residual and the lambda of the solve.

    `spread` is the root mean square that the concept's scores will have, damped and plain.
    """

    method: str
    count: int
    trace: float
    z: Float[np.ndarray, "m k"]
    residual: tuple[float, ...]
    lam: float
    spread: tuple[tuple[float, float], ...]


class SolveWorker(StoreWorker):
    """K from its groups' sums, to `gram.safetensors`; then z = (K + lambda I)^-1 phi_q of every concept.

    In the dual form when there are fewer samples than features.
    """

    def __call__(self, task: SolveTask, attempt: Attempt) -> SolveResult:
        gram, queries = self._sum(task), torch.from_numpy(task.phi).to(torch.float64)
        write_bytes(self.audit, gram_file(task.method), encode_gram(gram.matrix.numpy(), gram.count))
        if gram.trace == 0:
            raise UserError(
                f"all features of {task.method} are zero: for no sample does the prediction depend on the caption, so "
                "there is nothing to attribute (is the model trained?). Choose another method, or another model"
            )

        def phi() -> Tensor:
            return torch.cat([phi for _, _, phi in self.features(*task.records)])

        solved, lam = fisher.solve_damped(gram, self.work.config.damping, queries, phi)
        spread = tuple(
            (ranking.score_rms(z, gram.matrix, gram.count), ranking.score_rms(q, gram.matrix, gram.count))
            for z, q in zip(solved.z, queries, strict=True)
        )
        return SolveResult(
            method=task.method,
            count=gram.count,
            trace=gram.trace,
            z=solved.z.numpy(),
            residual=tuple(solved.residual.tolist()),
            lam=lam,
            spread=spread,
        )

    def _sum(self, task: SolveTask) -> Gram:
        features = self.work.features[task.method]
        grams = prefetch(read_gram(self.store, features, group.node, group) for group in task.groups)
        return fisher.sum_grams(Gram(torch.from_numpy(matrix), count) for matrix, count in grams)


def stored_query(s: SolveResult, i: int, query: QueryResult) -> StoredQuery:
    """What `queries/` keeps of the i-th concept: phi_q, its solution, and the root mean square of its scores."""
    return StoredQuery(
        concept=query.concept,
        method=s.method,
        phi=query.phi.astype(np.float32),
        solved=s.z[i].astype(np.float32),
        residual=s.residual[i],
        lam=s.lam,
        spread_solved=s.spread[i][0],
        spread_phi=s.spread[i][1],
    )
