"""From features to solved queries: Grams summed along a tree over the shards, and a linear solve for each method.

Workers read parts and Grams from the store and return small records. The plan fixes the order of every sum, so that a
sum done twice has the same bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution import fisher, ranking
from concept_trak.attribution.damping import (
    DEFAULT_DAMPING,
    DampingChoice,
    damping_curve,
    most_separating_damping,
    why_default,
)
from concept_trak.attribution.fisher import DualFactor, Factor, Gram, ZeroFactor, stored_gram
from concept_trak.audit.damping import Halves, correlated_records, keep_choice, read_choice
from concept_trak.audit.gram_tree import GramNode
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.query_features import MethodQuery
from concept_trak.audit.worker import StoreWorker
from concept_trak.store.audit_files import ListedFile, write_listed
from concept_trak.store.consistency import ExpectedGram
from concept_trak.store.grams import encode_gram, read_gram, write_gram
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import gram_file
from concept_trak.store.prefetch import prefetch
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record
from concept_trak.store.store import Store


@dataclass(frozen=True)
class GramTask(Task):
    """One node of a method's tree: a leaf, with the records of its shards, or a sum of its `children`."""

    method: str
    name: str
    records: tuple[Record, ...] = ()
    children: tuple[ExpectedGram, ...] = ()

    @property
    def expected(self) -> ExpectedGram:
        """What the sum has, by the records of the shards or by the children."""
        count = sum(r.rows for r in self.records) + sum(gram.count for gram in self.children)
        squares = (r.sum_squares for r in self.records), (gram.sum_squares for gram in self.children)
        return ExpectedGram(self.name, count, math.fsum(chain(*squares)))

    @property
    def label(self) -> str:
        return f"{self.method}-{self.name}"


@dataclass(frozen=True)
class GramResult:
    """The name of the node that was summed; empty if it has no rows."""

    name: str


class GramWorker(StoreWorker):
    """One node to `grams/<node>.safetensors`: the sum of phi phi^T over its shards, or of its children, in order."""

    def __call__(self, task: GramTask, attempt: Attempt) -> GramResult:
        features = self.work.features[task.method]
        gram = add_grams(self.store, features, task.children) if task.children else self._leaf(task.records)
        if gram is None:
            return GramResult("")
        write_gram(self.store, features, task.name, gram.matrix.numpy(), gram.count)
        return GramResult(task.name)

    def _leaf(self, records: Sequence[Record]) -> Gram | None:
        blocks = self.blocks(*records)
        return stored_gram((torch.from_dlpack(block.unit), torch.from_dlpack(block.scale)) for block in blocks)


def add_grams(store: Store, features: FeatureSet, nodes: Iterable[ExpectedGram]) -> Gram:
    """The sum of Grams that are in the store, in the order given; each is checked, and two of them are in memory."""
    grams = prefetch(read_gram(store, features, node.node, node) for node in nodes)
    return fisher.sum_grams(Gram(torch.from_numpy(matrix), count) for matrix, count in grams)


def expected_gram(node: GramNode, records: Sequence[Record]) -> ExpectedGram:
    """What the sum of a node has, by the records of all shards of the plan, in its order."""
    below = records[node.first : node.stop]
    return ExpectedGram(node.name, sum(r.rows for r in below), math.fsum(r.sum_squares for r in below))


def expected_grams(nodes: Iterable[GramNode], records: Sequence[Record]) -> tuple[ExpectedGram, ...]:
    """The same of several nodes, without those that have no rows: they have no file."""
    return tuple(gram for node in nodes if (gram := expected_gram(node, records)).count)


def gram_task(method: str, node: GramNode, records: Sequence[Record]) -> GramTask:
    """The work of one node. `records` are those of all shards of the plan, in its order."""
    if node.children:
        return GramTask(method, node.name, children=expected_grams(node.children, records))
    return GramTask(method, node.name, tuple(r for r in records[node.first : node.stop] if r.rows))


Groups = tuple[Float[np.ndarray, "_ k"] | None, ...]
"""By concept, vectors of its groups of samples; None for a concept that cannot be divided."""


@dataclass(frozen=True)
class SolveTask(Task):
    """One method's linear system: the top of its tree of Grams, in plan order, and phi_q of each concept.

    `records` are the parts, which only the dual form reads: none where there are at least as many samples as features.
    With `damping=auto`, `halves` are those of every concept, and `correlated` the parts whose scores tell how well they
    agree. `groups` are the features of every concept's groups of samples, which are solved too.
    """

    method: str
    grams: tuple[ExpectedGram, ...]
    phi: Float[np.ndarray, "m k"]
    records: tuple[Record, ...] = ()
    halves: Halves = ()
    correlated: tuple[Record, ...] = ()
    groups: Groups = ()

    @property
    def label(self) -> str:
        return self.method


@dataclass(frozen=True)
class SolveResult:
    """z of each concept with its relative residual and the lambda of the solve.

    `spread` is the root mean square that the concept's scores will have, damped and plain. `groups` are the solutions
    of its groups of samples.
    """

    method: str
    count: int
    trace: float
    z: Float[np.ndarray, "m k"]
    residual: tuple[float, ...]
    lam: float
    spread: tuple[tuple[float, float], ...]
    damping: DampingChoice
    file: ListedFile
    groups: Groups = ()


@dataclass(frozen=True)
class DampedSystem:
    """(K + lambda I) z = phi_q of one method, with the factor of K + lambda I, which is the same for every query.

    `file` is the file of K.
    """

    method: str
    gram: Gram
    damping: DampingChoice
    factor: Factor | DualFactor | ZeroFactor
    lam: float
    file: ListedFile

    def solve(self, phi: Float[np.ndarray, "m k"], groups: Groups = ()) -> SolveResult:
        """z of every query and of its groups of samples, and the root mean square that its scores will have."""
        queries, gram = torch.from_numpy(phi).to(torch.float64), self.gram
        solved = self.factor.solve(queries)
        spread = tuple(
            (ranking.score_rms(z, gram.matrix, gram.count), ranking.score_rms(q, gram.matrix, gram.count))
            for z, q in zip(solved.z, queries, strict=True)
        )
        return SolveResult(
            method=self.method,
            count=gram.count,
            trace=gram.trace,
            z=solved.z.numpy(),
            residual=tuple(solved.residual.tolist()),
            lam=self.lam,
            spread=spread,
            damping=self.damping,
            file=self.file,
            groups=tuple(None if own is None else self._solved(own) for own in groups),
        )

    def _solved(self, phi: Float[np.ndarray, "g k"]) -> Float[np.ndarray, "g k"]:
        return self.factor.solve(torch.from_numpy(phi).to(torch.float64)).z.numpy()


def damped_system(
    method: str, gram: Gram, damping: DampingChoice, file: ListedFile, phi: Callable[[], Tensor]
) -> DampedSystem:
    """The system of a method; `phi` returns all features, which only the dual form needs."""
    factor, lam = fisher.factorize_damped(gram, damping.damping, phi)
    return DampedSystem(method=method, gram=gram, damping=damping, factor=factor, lam=lam, file=file)


class SolveWorker(StoreWorker):
    """K from the top of its tree, to `gram.safetensors`; then z = (K + lambda I)^-1 phi_q of every concept.

    In the dual form when there are fewer samples than features.
    """

    def __call__(self, task: SolveTask, attempt: Attempt) -> SolveResult:
        gram = add_grams(self.store, self.work.features[task.method], task.grams)
        file = write_listed(self.audit, gram_file(task.method), encode_gram(gram.matrix.numpy(), gram.count))

        def phi() -> Tensor:
            return torch.cat([phi for _, _, phi in self.features(*task.records)])

        choice = self._damping(task, gram, phi)
        return damped_system(task.method, gram, choice, file, phi).solve(task.phi, task.groups)

    def _damping(self, task: SolveTask, gram: Gram, phi: Callable[[], Tensor]) -> DampingChoice:
        """The configured damping; with `auto` the one that the queries agree about, or the default and why."""
        configured = self.work.config.damping
        if not isinstance(configured, str):
            return DampingChoice(configured)
        if (choice := read_choice(self.audit, task.method)) is not None:
            return choice
        if reason := "every feature is zero" if gram.trace == 0 else why_default(task.halves):
            return keep_choice(self.audit, task.method, DampingChoice(DEFAULT_DAMPING, reason=reason))
        halves = [torch.from_numpy(half).double() for half in task.halves if half is not None]
        weights, rows = zip(*[(weight, phi) for _, weight, phi in self.features(*task.correlated)], strict=True)
        curve = damping_curve(gram, halves, phi, torch.cat(rows), torch.cat(weights))
        return keep_choice(self.audit, task.method, DampingChoice(most_separating_damping(curve), curve))


def solve_task(
    method: str,
    grams: Sequence[ExpectedGram],
    queries: Sequence[MethodQuery],
    records: Sequence[Record],
    auto: bool = False,
) -> SolveTask:
    """The linear system of a method, with its parts where there are fewer samples than features.

    Args:
        queries: of every concept, in their order.
        auto: whether the damping is to be chosen, which needs the concepts' halves.
    """
    phi = np.stack([query.phi for query in queries])
    dual = sum(gram.count for gram in grams) < phi.shape[1]
    return SolveTask(
        method=method,
        grams=tuple(grams),
        phi=phi,
        records=tuple(records) if dual else (),
        halves=tuple(query.halves for query in queries) if auto else (),
        correlated=correlated_records(records) if auto else (),
        groups=tuple(query.groups for query in queries),
    )


def stored_query(s: SolveResult, i: int, query: MethodQuery) -> StoredQuery:
    """What `queries/` keeps of the i-th concept: phi_q, its solution, and the root mean square of its scores."""
    groups = s.groups[i] if s.groups else None
    return StoredQuery(
        concept=query.concept,
        method=s.method,
        phi=query.phi.astype(np.float32),
        solved=s.z[i].astype(np.float32),
        residual=s.residual[i],
        lam=s.lam,
        spread_solved=s.spread[i][0],
        spread_phi=s.spread[i][1],
        groups=None if groups is None else groups.astype(np.float32),
    )
