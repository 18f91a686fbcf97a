"""From features to what scores them, without ever holding them all: Grams by group, and one solve.

Workers read parts from the store and return small records. The order of every sum is fixed by the plan, so a sum done
twice is the same bytes.
"""

from dataclasses import dataclass

import torch

from concept_trak.attribution import fisher, ranking
from concept_trak.attribution.fisher import Gram, GramSum
from concept_trak.audit.worker import Attempt, OnStore
from concept_trak.store.grams import encode_gram, read_gram, write_gram
from concept_trak.store.manifest import gram_file, write_bytes
from concept_trak.store.prefetch import prefetch
from concept_trak.store.records import Record


@dataclass(frozen=True)
class Group:
    """Shards whose Gram is one file, of one method."""

    method: str
    name: str
    records: tuple[Record, ...]


class SumGroup(OnStore):
    """One group: the sum of phi phi^T over its shards, in order, to `grams/<group>.safetensors`."""

    def __call__(self, group: Group, attempt: Attempt) -> str:
        total: GramSum | None = None
        for block in self.blocks(*group.records):
            total = total or GramSum(block.unit.shape[1])
            total.add(torch.from_dlpack(block.unit), torch.from_dlpack(block.scale))
        if total is None:
            return ""
        gram = total.gram()
        write_gram(self.store, self.work.fingerprints[group.method], group.name, gram.matrix.numpy(), gram.count)
        return group.name


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
        if gram.trace == 0:
            raise ValueError(
                f"all features of {system.method} are zero: by no picture could the model tell its caption from "
                "another; there is nothing to attribute (is it trained?). Choose another method, or another model"
            )
        lam = gram.damped(self.work.config.damping)
        if gram.count < len(gram.matrix):
            # All of them at once: they are fewer rows than K has, so less memory than K itself.
            phi = torch.cat([phi for _, _, phi in self.features(*system.records)])
            solved = fisher.solve_dual(phi, lam, queries)
        else:
            solved = fisher.solve(gram.matrix, lam, queries)
        spread = tuple(
            (ranking.score_rms(z, gram.matrix, gram.count), ranking.score_rms(q, gram.matrix, gram.count))
            for z, q in zip(solved.z, queries, strict=True)
        )
        z, residual = tuple(map(tuple, solved.z.tolist())), tuple(solved.residual.tolist())
        return Solution(system.method, gram.count, gram.trace, z, residual, lam, spread)

    def _sum(self, system: System) -> Gram:
        fp = self.work.fingerprints[system.method]
        grams = prefetch(read_gram(self.store, fp, name) for name in system.groups)
        return fisher.sum_grams(Gram(torch.from_numpy(matrix), count) for matrix, count in grams)
