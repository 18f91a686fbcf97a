"""Every stage of an audit in order, and what they return."""

from dataclasses import dataclass, field

from concept_trak.audit.aggregate import AggregateResult
from concept_trak.audit.diff import Difference
from concept_trak.audit.gram import SolveResult
from concept_trak.audit.layer_scores import LayerScores
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.query_features import MethodQuery
from concept_trak.audit.results import Tally
from concept_trak.audit.shown_samples import ShownSample
from concept_trak.store.records import Record


@dataclass(frozen=True)
class StageResults:
    """The results of the stages of a run: by method, or by (method, concept); `measures` by concept, then column.

    `since` is the audit that it was compared with, or empty; `differences` are the comparisons.
    """

    records: dict[str, list[Record]]
    queries: dict[tuple[str, str], MethodQuery]
    solutions: dict[str, SolveResult]
    tally: Tally
    samples: dict[str, ShownSample]
    measures: dict[str, dict[str, dict[str, float]]]
    aggregates: dict[str, AggregateResult]
    layers: LayerScores = field(default_factory=LayerScores)
    since: str = ""
    differences: tuple[Difference, ...] = ()

    @property
    def parts(self) -> list[Record]:
        """The records of every method, one list."""
        return [record for records in self.records.values() for record in records]


def run_stages(run: AuditRun) -> StageResults:
    """Every stage in order."""
    records = run.featurize()
    grams = run.sum_grams(records)
    queries = run.query()
    solutions = run.solve(queries, records, grams)
    tally = run.score(records)
    aggregates = run.aggregate(records)
    return StageResults(
        records=records,
        queries=queries,
        solutions=solutions,
        tally=tally,
        measures=run.measure(records, tally),
        aggregates=aggregates,
        layers=run.split(tally),
        samples=run.show(tally),
    )
