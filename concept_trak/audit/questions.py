"""New questions to a finished audit: its features answer a concept that it was not run for.

    score_i = w_i phi_q^T (K + lambda I)^-1 phi_i

Only phi_q is computed, by the function and the model of the audit's workers. K, lambda and every phi_i are the audit's
own, so the scores are those that an audit with this concept has, to rounding. Nothing is written into the audit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product

import torch

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.query import require_query_direction
from concept_trak.audit.answer import Answer
from concept_trak.audit.answer_layers import AnswerSplit, AnswerSplitter, split_answer
from concept_trak.audit.audit_systems import AuditSystems
from concept_trak.audit.finished_audit import FinishedAudit
from concept_trak.audit.gram import SolveResult
from concept_trak.audit.kept_features import KeepingBudget, KeptFeatures
from concept_trak.audit.layer_scores import Parts
from concept_trak.audit.listed_features import listed_records, listed_settings
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.plan import read_shards
from concept_trak.audit.prepare import Prepared
from concept_trak.audit.query_features import MethodQuery, grouped
from concept_trak.audit.query_model import LocalQueryModel, QueryModel
from concept_trak.audit.repair import config_of
from concept_trak.audit.resolve import absolute_model
from concept_trak.audit.results import Tally
from concept_trak.audit.score import ScoreResult
from concept_trak.audit.shared_pass import SolvedQuestion, scan, shared_tallies, timed_step
from concept_trak.audit.shown_samples import OriginalReader, ShownSample
from concept_trak.audit.stages import StageResults
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.config import AuditConfig, ModelConfig, WorkerSettings
from concept_trak.data.inventory import Survey
from concept_trak.data.shard import Source
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Damaged
from concept_trak.store.queries import StoredQuery
from concept_trak.store.tables import read_parquet

DRAWN = 8
"""The number of pictures of a query's own samples, if there are pictures."""
STEPS = ("model", "query", "solve", "score", "show")
"""The steps of a question, in their order."""


@dataclass(frozen=True)
class MovedModel:
    """Where the audit's model is now. An empty field means: where it was."""

    path: str = ""
    """As model.path of an audit. The model must be the one that the features were computed with."""
    weights: str = ""
    lora: str = ""
    embeddings: tuple[str, ...] = ()
    device: str = ""
    """auto (a GPU if there is one), cpu, or cuda."""


class Questions:
    """A finished audit that answers new concepts. It keeps the model, the factors of K + lambda I and the last queries.

    The first question loads the model and factorizes K. A later one costs the gradients of the query and one pass over
    the features, and only the pass if its concept was asked before. One thread at a time may ask; a server
    has one thread in `solve_question` and another one in `rank` and `answer`.

    Args:
        results: the audit.
        model: where its model is now, if it has moved.
        worker: what this process may use of its machine; None is torch's number of threads, and a GPU if there is one.
        keep: what the features may take between questions; by default they are read from the store each time.

    Raises:
        UserError: features of the audit or the index of its data are gone, or its settings cannot be read.
        Damaged: features were altered.
    """

    def __init__(
        self,
        results: FinishedAudit,
        model: MovedModel = MovedModel(),
        worker: WorkerSettings | None = None,
        keep: KeepingBudget = KeepingBudget(),
    ) -> None:
        self.results, store, settings = results, results.audit.store, results.settings
        plan = read_parquet(results.file("plan.parquet")).to_pylist()
        config = config_of(settings, plan, store.uri)
        self.config: AuditConfig = replace(
            config, model=_moved(config, model), scores="top", aggregates=False, report="file", since=""
        )
        features = {method: FeatureSet(settings["fingerprints"][method]) for method in config.methods}
        self._settings = {method: listed_settings(results, method, own) for method, own in features.items()}
        self.records = {method: listed_records(results, method, own, plan) for method, own in features.items()}
        self._shards = read_shards(store, config.data, plan)
        self.original = OriginalReader(store, self.config.data, self._shards)
        self.work = Work(self.config, features, worker or own_settings())
        reader = StoreWorker(self.work)
        self._systems = AuditSystems(results, self.config.damping, reader, self.records)
        self._split = AnswerSplitter(self.config.projector, self.split)
        parts = {(r.fingerprint, r.shard): r.bytes for records in self.records.values() for r in records}
        self.features = KeptFeatures(reader, keep, sum(parts.values()))
        self.model: QueryModel = LocalQueryModel(self.work)

    def load(self) -> None:
        """Load the model and factorize K now, and not at the first question. Raises as `ask` does."""
        self.model.load()
        for method in self.config.methods:
            self._systems.load(method)

    def ask(
        self,
        concepts: Sequence[Concept],
        methods: Sequence[str] = (),
        top: int = 10,
        pictured: int = 0,
        progress: Callable[[str], object] = lambda step: None,
    ) -> Answer:
        """Rank the samples by some concepts, in one pass over the features of each method.

        Args:
            concepts: the concepts, with different names.
            methods: names of methods of the audit; all by default.
            top: number of the best and of the worst samples, at least 1.
            pictured: how many of them get a picture, for a page; with 0 the query's own samples are not drawn either.
            progress: is called with the name of each of `STEPS` as it begins.

        Raises:
            UserError: the audit has no such method, the model is not the one of the features, or it cannot answer.
            Damaged: a part is not the one that the audit was computed from; the message names it.
        """
        question = self.solve_question(self.configuration(concepts, methods, top, pictured), progress)
        (tally,) = self.rank([question], progress)
        return self.answer(question, tally, progress)

    def solve_question(
        self, config: AuditConfig, progress: Callable[[str], object] = lambda step: None
    ) -> SolvedQuestion:
        """The first half of `ask`, which needs the model.

        Args:
            config: from `configuration`.
            progress: as in `ask`.

        Raises:
            UserError: the model is not the one of the features, or it cannot answer.
        """
        seconds = dict[str, float]()
        timed = partial(timed_step, seconds, progress)
        with timed("model"):
            run = AuditRun(self._prepared(config), computed=dict.fromkeys(config.methods, 0))
        with timed("query"):
            queries = self.query(run.prepared)
        with timed("solve"):
            by_method = {m: [queries[m, c.name] for c in config.concepts] for m in config.methods}
            solutions = {m: self.solve(m, of_method) for m, of_method in by_method.items()}
        return SolvedQuestion(run=run, queries=queries, solutions=solutions, seconds=seconds)

    def rank(
        self, questions: Sequence[SolvedQuestion], progress: Callable[[str], object] = lambda step: None
    ) -> list[Tally]:
        """The best and the worst samples of each question, in one pass over the features of each method.

        The scores of one question over features that are not kept have the bits of an audit; others are rounded apart.

        Raises:
            UserError: a score is too large.
            Damaged: as in `ask`.
        """
        seconds = dict[str, float]()
        with timed_step(seconds, progress, "score"):
            tallies = shared_tallies(questions, self.score)
        for question in questions:
            question.seconds.update(seconds)
        return tallies

    def answer(
        self, question: SolvedQuestion, tally: Tally, progress: Callable[[str], object] = lambda step: None
    ) -> Answer:
        """The answer to a question, once `rank` has returned its samples.

        Raises:
            UserError: the training data cannot be read again.
            Damaged: as in `ask`.
        """
        with timed_step(question.seconds, progress, "show"):
            layers, samples = self._split(question, tally), self._show(question.run, tally)
        results = StageResults(
            records={method: self.records[method] for method in question.solutions},
            queries=question.queries,
            solutions=question.solutions,
            tally=tally,
            samples=samples,
            layers=layers,
            measures={},
            aggregates={},
        )
        return Answer(question.run, results, question.seconds)

    def query(self, p: Prepared) -> dict[tuple[str, str], MethodQuery]:
        """The features phi_q [k] of all queries, by (method, concept). Only this step needs the model."""
        queries = (query for task in p.queries for query in self.model.query(task).queries)
        return {(query.method, query.concept): query for query in queries}

    def solve(self, method: str, queries: Sequence[MethodQuery]) -> SolveResult:
        """Solve z = (K + lambda I)^-1 phi_q for some queries of one method. The factor of K + lambda I is kept."""
        return self._systems.solve(method, queries)

    def score(self, method: str, queries: Sequence[StoredQuery], top: int) -> Iterator[ScoreResult]:
        """The best and the worst samples of some queries of one method, for some parts at a time."""
        return scan(self.features, self.records[method], method, queries, top)

    def split(self, task: AnswerSplit) -> Parts:
        """Scores of one method, split by layer."""
        return split_answer(self.features, self.records[task.method], task)

    def _show(self, run: AuditRun, tally: Tally) -> dict[str, ShownSample]:
        """Captions, labels and pictures of the best and worst samples: copies in the store, else the training data."""
        try:
            return run.show(tally, copied=False)
        except Damaged:
            raise
        except UserError as error:
            raise UserError(
                f"the samples are ranked, but the training data of audit {self.config.audit} cannot be read again: "
                f"{error}"
            ) from error

    def configuration(
        self, concepts: Sequence[Concept], methods: Sequence[str], top: int, pictured: int
    ) -> AuditConfig:
        """The configuration of an audit with these concepts, after every check that needs no model.

        Raises:
            UserError: a check has failed.
        """
        available = self.config.methods
        if unknown := [method for method in methods if method not in available]:
            raise UserError(f"method={unknown[0]!r}: audit {self.config.audit} has {', '.join(available)}")
        if not concepts:
            raise UserError("no concept is asked about; give one, such as Concept('red', prompt='a red square')")
        chosen = {method: available[method] for method in (methods or available)}
        for concept, method in product(concepts, chosen.values()):
            require_query_direction(method, concept)
        return replace(self.config, concepts=tuple(concepts), methods=chosen, top=top, shown=pictured)

    def _prepared(self, config: AuditConfig) -> Prepared:
        """The prepared audit with this configuration, on the features of the finished one."""
        opened, pictures = self.model.open(config), DRAWN if config.shown else 0
        sources = {s.source: Source(uri=s.source, version=s.version, rows=s.rows) for s in self._shards}
        return Prepared(
            work=replace(self.work, config=config, features={m: self.work.features[m] for m in config.methods}),
            store=self.results.audit.store,
            audit=self.results.audit,
            plan=self._shards,
            data=Survey(tuple(sources.values())),
            settings=self._settings,
            queries=grouped((replace(task, picture_count=pictures) for task in opened.tasks), config.methods),
            demand=opened.demand,
            resolution=opened.resolution,
            sizes=opened.sizes,
        )


def own_settings() -> WorkerSettings:
    """The threads that torch has in this process, and a GPU if there is one."""
    return WorkerSettings(cpus=float(torch.get_num_threads()), gpus=1)


def _moved(config: AuditConfig, model: MovedModel) -> ModelConfig:
    """The settings of the audit's model, with its new addresses."""
    overrides = {field.name: value for field in fields(model) if (value := getattr(model, field.name))}
    return absolute_model(replace(config.model, **overrides))
