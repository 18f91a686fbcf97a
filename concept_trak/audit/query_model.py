"""The model that computes the queries of questions to a finished audit, in this process or in another.

Only `open` and `query` need the model. So a server may keep it on a machine with a GPU, and everything else elsewhere.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from concept_trak import UserError
from concept_trak.audit.mapper import FirstAttempt
from concept_trak.audit.plan import Demand, demand
from concept_trak.audit.query_features import MethodQuery, QueryResult, QueryTask, QueryWorker, open_questions
from concept_trak.audit.recent import Recent
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig

KEPT_QUERIES = 64
"""How many queries are kept; each has k numbers and its pictures."""


@dataclass(frozen=True)
class OpenedQueries:
    """The queries of a configuration, and what the pages need to know of the model.

    Attributes:
        tasks: a query for each concept, without methods, with the contents of the concept's files.
        demand: the numbers from which the needed memory follows.
        resolution: the side of the model's images, in pixels.
        sizes: the attributable parameters, by name and number of scalars, in the model's order.
    """

    tasks: tuple[QueryTask, ...]
    demand: Demand
    resolution: int
    sizes: dict[str, int]


class QueryModel(Protocol):
    """The model of a finished audit. All methods raise UserError if it is not the model of the audit's features."""

    def load(self) -> None:
        """Load the model now, and not at the first question."""

    def open(self, config: AuditConfig) -> OpenedQueries:
        """Check that the model can answer, and read the files of the concepts.

        Raises:
            UserError: a file cannot be read, or the model cannot answer; the message names the concept.
        """
        ...

    def query(self, task: QueryTask) -> QueryResult:
        """The features phi_q [k] of one concept for methods that share their states."""
        ...


class LocalQueryModel:
    """The model in this process. It keeps the last queries.

    Args:
        work: the settings of the worker that computes the queries.
    """

    def __init__(self, work: Work) -> None:
        self._work, self._queries = work, Recent[MethodQuery](KEPT_QUERIES)

    def load(self) -> None:
        """Load the model, and measure how many samples fit into memory, which runs it three times."""
        self._worker.batch_size(FirstAttempt())

    def open(self, config: AuditConfig) -> OpenedQueries:
        denoiser = self._worker.denoiser
        return OpenedQueries(
            tasks=tuple(open_questions(denoiser, config)),
            demand=demand(config, denoiser),
            resolution=denoiser.resolution,
            sizes={name: p.numel() for name, p in denoiser.parameters.items()},
        )

    def query(self, task: QueryTask) -> QueryResult:
        """A feature is computed again only if no recent query had the same concept and query side."""
        methods = self._work.config.methods
        keys = {method: repr((methods[method].query_spec, task.content)) for method in task.methods}
        queries = {method: self._queries.get(key) for method, key in keys.items()}
        if missing := tuple(method for method, query in queries.items() if query is None):
            computed = self._worker(replace(task, methods=missing), FirstAttempt()).queries
            queries |= {query.method: self._queries.keep(keys[query.method], query) for query in computed}
        named = {m: replace(query, method=m, concept=task.concept.name) for m, query in queries.items() if query}
        return QueryResult(tuple(named[method] for method in task.methods))

    @cached_property
    def _worker(self) -> QueryWorker:
        """The worker with the model, after a check that the features were computed with this model."""
        try:
            return QueryWorker(self._work)
        except UserError as error:
            raise UserError(
                f"audit {self._work.config.audit} cannot be asked: {error}. Where its model has moved, set model.path= "
                "to where it is now"
            ) from error
