"""The answer of a finished audit to concepts that it was not run for."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from concept_trak.audit.comparison import Overlap, overlaps
from concept_trak.audit.finished_audit import ranking_rows
from concept_trak.audit.layer_scores import JOINT, joint_rows
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.results import top_kinds, top_rows
from concept_trak.audit.stages import StageResults
from concept_trak.store.tables import from_rows


@dataclass(frozen=True)
class Answer:
    """The rankings of some concepts by the features of a finished audit.

    Attributes:
        run, results: the run and its results, from which the page is made, as for an audit.
        seconds: how long each step took: model, query, solve, score, show.
    """

    run: AuditRun
    results: StageResults
    seconds: Mapping[str, float]

    @cached_property
    def table(self) -> pa.Table:
        """The best and worst samples of every concept, method and form, with the columns of `top.parquet`."""
        config, results = self.run.prepared.config, self.results
        counts = {method: solution.count for method, solution in results.solutions.items()}
        return from_rows(top_kinds(config), list(top_rows(config, results.tally, results.samples, counts)))

    @cached_property
    def layers(self) -> pa.Table:
        """Every score of `table`, split over the layers of the model, with the columns of `joint.parquet`.

        It has no rows if the audit's projector mixes layers, as all do but `mask` and `identity`.
        """
        layers = self.results.layers
        rows = joint_rows(self.table.to_pylist(), layers.names, layers.parts) if layers.parts is not None else ()
        return from_rows(JOINT, list(rows))

    @cached_property
    def comparisons(self) -> dict[str, tuple[Overlap, ...]]:
        """By concept, how far the rankings of each two methods, and of both forms of a method, agree.

        The rank correlation is over about 1000 samples of the data set, which are those of an audit.
        """
        config = self.run.prepared.config
        return {concept.name: overlaps(config, self.results.tally, concept) for concept in config.concepts}

    def top(
        self,
        concept: str | None = None,
        method: str | None = None,
        form: str | None = "damped",
        end: str = "top",
        n: int | None = None,
    ) -> pa.Table:
        """The samples at one end of the rankings, the most extreme first.

        The arguments and the columns are those of `FinishedAudit.top`.

        Raises:
            UserError: there is no such concept, method, form or end.
        """
        config = self.run.prepared.config
        concepts = tuple(c.name for c in config.concepts)
        filters = {"concept": (concept, concepts), "method": (method, tuple(config.methods))}
        return ranking_rows(self.table, filters, form, end, n)

    def bottom(self, concept: str | None = None, method: str | None = None, n: int | None = None) -> pa.Table:
        """The samples with the lowest damped scores, the lowest first."""
        return self.top(concept, method, end="bottom", n=n)
