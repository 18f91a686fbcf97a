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
from concept_trak.audit.score import ScoreResult, score_part, score_tasks, stack_queries
from concept_trak.audit.score_sample import sampled_scores
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
    features: KeptFeatures,
    records: Sequence[Record],
    method: str,
    queries: Sequence[StoredQuery],
    top: int,
    of: int = 0,
) -> Iterator[ScoreResult]:
    """Yield the best and the worst samples of some queries of one method, for some parts at a time.

    The scores of the samples by which rankings are compared (`sampled_scores`) come with them.

    Args:
        features, records: the features of the method, or a share of them.
        queries: with different names.
        top: number of samples at each end.
        of: number of samples of all shares; 0 if `records` are all.
    """
    columns = stack_queries(queries)
    for task in score_tasks(method, records):
        summary, sample = columns.summary(top), dict[str, tuple[float, ...]]()
        with closing(features.blocks(task.records)) as coming:
            for record in task.records:
                sample |= sampled_scores(*score_part(method, record, coming, summary), of or task.of)
        yield ScoreResult(method, summary.column_ends(), sample=sample)


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
