"""One pass over the features for several questions, so that each row is read and widened once for all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32
from torch import Tensor

from concept_trak.attribution.ranking import QUERY_ROWS, transposed_products
from concept_trak.audit.gram import SolveResult, stored_query
from concept_trak.audit.kept_features import KeptFeatures
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.query_features import MethodQuery
from concept_trak.audit.results import Tally
from concept_trak.audit.score import (
    SCORED_BYTES,
    Queries,
    ScoreResult,
    TaskSummary,
    require_width,
    score_part,
    score_tasks,
    stack_queries,
)
from concept_trak.audit.score_sample import sampled_scores
from concept_trak.store.manifest import plain_column
from concept_trak.store.part import Block
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record

Score = Callable[[str, Sequence[StoredQuery], int], Iterator[ScoreResult]]
"""Yields the ends of some queries of a method, each for some parts; its last argument is the length of the ends."""


KEPT_BYTES = 2 * SCORED_BYTES
"""Bytes of kept parts whose ends are found together. Their scores by 16 questions take at most 100 MB at k = 4096."""


@dataclass(frozen=True)
class SolvedQuestion:
    """A question whose queries are solved, so that nothing but the pass over the features is left.

    Attributes:
        run: its run, with its configuration.
        queries: by method and concept.
        solutions: by method, of all concepts in their order.
        seconds: how long each step took; the steps that follow are added.
    """

    run: AuditRun
    queries: dict[tuple[str, str], MethodQuery]
    solutions: dict[str, SolveResult]
    seconds: dict[str, float]

    @property
    def concepts(self) -> list[str]:
        """The names of the concepts."""
        return [concept.name for concept in self.run.prepared.config.concepts]

    @property
    def top(self) -> int:
        """Number of the best and of the worst samples."""
        return self.run.prepared.config.top

    def columns(self, method: str) -> list[StoredQuery]:
        """The queries of a method with their solutions."""
        queries = [self.queries[method, name] for name in self.concepts]
        return [stored_query(self.solutions[method], i, query) for i, query in enumerate(queries)]


def scan(
    features: KeptFeatures,
    records: Sequence[Record],
    method: str,
    queries: Sequence[StoredQuery],
    top: int,
    of: int = 0,
) -> Iterator[ScoreResult]:
    """Yield the best and the worst samples of some queries of one method, for some parts at a time.

    The scores of the samples by which rankings are compared (`sampled_scores`) come with them. Features that are not
    kept are scored with the bits of an audit; kept ones by `score_kept_part`.

    Args:
        features, records: the features of the method, or a share of them.
        queries: with different names.
        top: number of samples at each end.
        of: number of samples of all shares; 0 if `records` are all.
    """
    columns = stack_queries(queries)
    z = query_rows(columns) if features.keeps else None
    for task in score_tasks(method, records, most=SCORED_BYTES if z is None else KEPT_BYTES):
        summary, sample = columns.summary(top), dict[str, tuple[float, ...]]()
        with closing(features.blocks(task.records)) as coming:
            for record in task.records:
                if z is None:
                    sample |= sampled_scores(*score_part(method, record, coming, summary), of or task.of)
                else:
                    ids, scores = score_kept_part(method, record, coming, summary, z)
                    rows = features.sampled_rows(record, ids, of or task.of)
                    sample |= {ids[row]: tuple(own) for row, own in zip(rows, scores.T[rows].tolist(), strict=True)}
        yield ScoreResult(method, summary.column_ends(), sample=sample)


def query_rows(queries: Queries) -> Float32[Tensor, "r k"]:
    """All vectors of some queries for `transposed_products`: the columns, then the groups, then rows of zeros."""
    z = torch.cat([queries.z, *(own for own in queries.groups if own is not None)])
    return torch.cat([z, torch.zeros(-len(z) % QUERY_ROWS, z.shape[1])])


def score_kept_part(
    method: str, record: Record, coming: Iterator[Block], summary: TaskSummary, z: Float32[Tensor, "r k"]
) -> tuple[list[str], Float32[Tensor, "c n"]]:
    """As `score_part`, but the scores of a query do not depend on which queries share the pass.

    They differ from those of an audit by the rounding of float32.

    Args:
        method, record: the features and the part.
        coming: the next blocks.
        summary: of the queries.
        z: their vectors, from `query_rows`.

    Returns:
        The ids of the samples, and their scores by column.
    """
    ids, scores = list[str](), torch.empty(len(z), record.rows)
    columns = len(summary.queries.columns)
    groups = slice(columns, columns if summary.groups.z is None else columns + len(summary.groups.z))
    while len(ids) < record.rows:
        block = next(coming)
        require_width(block, z.shape[1], record)
        own = scores[:, len(ids) : len(ids) + len(block.ids)]
        transposed_products(torch.from_dlpack(block.unit), torch.from_dlpack(block.factor()), z, own)
        by_group = own[groups].T if summary.groups.z is not None else None
        summary.add_scores(method, record, block.ids, own[:columns].T, by_group)
        ids += block.ids
    return ids, scores[:columns]


def shared_tallies(questions: Sequence[SolvedQuestion], score: Score) -> list[Tally]:
    """The best and the worst samples of each question, in one pass over the features of each method.

    The scores of a question by itself have the bits of `Questions.ask`. Where features are kept, its scores with others
    have them too; elsewhere several share a product, which rounds a column in another way: scores differ by about 1e-7
    of the largest.
    """
    tallies = [Tally(question.top) for question in questions]
    for method in dict.fromkeys(method for question in questions for method in question.solutions):
        those = [i for i, question in enumerate(questions) if method in question.solutions]
        columns = [(i, query) for i in those for query in questions[i].columns(method)]
        # Numbers, because two questions may name their concepts alike.
        numbered = [replace(query, concept=str(number)) for number, (_, query) in enumerate(columns)]
        for result in score(method, numbered, max(questions[i].top for i in those)):
            for number, (i, query) in enumerate(columns):
                tallies[i].add(_of_query(result, number, query.concept))
    return tallies


def _of_query(result: ScoreResult, number: int, concept: str) -> ScoreResult:
    """The two columns of one query, by their names in the question."""
    own = {concept: result.columns[str(number)], plain_column(concept): result.columns[plain_column(str(number))]}
    both = slice(2 * number, 2 * number + 2)
    return ScoreResult(result.method, own, sample={sample: scores[both] for sample, scores in result.sample.items()})


@contextmanager
def timed_step(seconds: dict[str, float], progress: Callable[[str], object], step: str) -> Iterator[None]:
    """Report that a step begins, and note how many seconds it takes."""
    progress(step)
    start = time.monotonic()
    yield
    seconds[step] = time.monotonic() - start
