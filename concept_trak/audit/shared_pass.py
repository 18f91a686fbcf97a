"""One pass over the features for several questions, so that each row is read and widened once for all of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from concept_trak.audit.gram import SolveResult, stored_query
from concept_trak.audit.kept_features import KeptFeatures
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.query_features import QueryResult
from concept_trak.audit.results import Tally
from concept_trak.audit.score import ColumnEnds, ScoreResult, score_part, score_tasks, stack_queries
from concept_trak.store.manifest import plain_column
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record

Score = Callable[[str, Sequence[StoredQuery], int], Iterator[ScoreResult]]
"""Yields the ends of some queries of a method, each for some parts; its last argument is the length of the ends."""


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
    queries: dict[tuple[str, str], QueryResult]
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
    features: KeptFeatures, records: Sequence[Record], method: str, queries: Sequence[StoredQuery], top: int
) -> Iterator[ScoreResult]:
    """Yield the best and the worst samples of some queries of one method, for some parts at a time.

    Args:
        features, records: the features of the method.
        queries: with different names.
        top: number of samples at each end.
    """
    columns = stack_queries(queries)
    for task in score_tasks(method, records):
        summary = columns.summary(top)
        with closing(features.blocks(task.records)) as coming:
            for record in task.records:
                score_part(method, record, coming, summary)
        yield ScoreResult(method, summary.column_ends())


def shared_tallies(questions: Sequence[SolvedQuestion], score: Score) -> list[Tally]:
    """The best and the worst samples of each question, in one pass over the features of each method.

    The scores of a question by itself have the bits of `Questions.ask`. Several share a product, which rounds a column
    in another way: scores differ by about 1e-7 of the largest.
    """
    tallies = [Tally(question.top) for question in questions]
    for method in dict.fromkeys(method for question in questions for method in question.solutions):
        those = [i for i, question in enumerate(questions) if method in question.solutions]
        columns = [(i, query) for i in those for query in questions[i].columns(method)]
        # Numbers, because two questions may name their concepts alike.
        numbered = [replace(query, concept=str(number)) for number, (_, query) in enumerate(columns)]
        for result in score(method, numbered, max(questions[i].top for i in those)):
            for number, (i, query) in enumerate(columns):
                tallies[i].add(ScoreResult(method, _named(result.columns, str(number), query.concept)))
    return tallies


def _named(columns: dict[str, ColumnEnds], number: str, concept: str) -> dict[str, ColumnEnds]:
    """The two columns of one concept, by their names in the question."""
    return {concept: columns[number], plain_column(concept): columns[plain_column(number)]}


@contextmanager
def timed_step(seconds: dict[str, float], progress: Callable[[str], object], step: str) -> Iterator[None]:
    """Report that a step begins, and note how many seconds it takes."""
    progress(step)
    start = time.monotonic()
    yield
    seconds[step] = time.monotonic() - start
