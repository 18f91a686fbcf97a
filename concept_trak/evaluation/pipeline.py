"""The pipeline of a benchmark: each model's audit, its queries, and the grades of every ranking."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from concept_trak.attribution.method import METHODS, Method
from concept_trak.audit.mapper import Mapper, serial
from concept_trak.audit.pipeline import MOST_REJECTS, AuditRun
from concept_trak.audit.prepare import prepare
from concept_trak.config import AuditConfig, WorkerSettings
from concept_trak.data.benchmarks.synthetic import EACH
from concept_trak.evaluation.baselines import GRADIENT_FREE, BaselineTask, BaselineWorker
from concept_trak.evaluation.benchmark import (
    GRADE_COLUMNS,
    BenchmarkQueryTask,
    BenchmarkQueryWorker,
    GradeTask,
    GradeWorker,
    benchmark_query_file,
    ranking_file,
)
from concept_trak.evaluation.retrieval import Cell
from concept_trak.evaluation.suite import (
    BenchmarkConfig,
    benchmark_audit,
    benchmark_cells,
    compared_methods,
    load_train_config,
    require_captions,
    require_known_pairs,
)
from concept_trak.evaluation.training.settings import TrainConfig
from concept_trak.models.embedding import require_embeddings
from concept_trak.store.manifest import Audit, finish_audit, read_manifest, read_table, write_table
from concept_trak.store.records import Record
from concept_trak.store.tables import from_rows


@dataclass(frozen=True)
class DatasetGrades:
    """The grades of all models of one data set, and by model the id of the audit that computed them."""

    title: str
    cells: list[Cell]
    grades: list[dict[str, Any]]
    audits: dict[str, str]


def serial_for(audit: Audit) -> Mapper:
    """The serial mapper, for any audit."""
    return serial


@dataclass(frozen=True)
class Spread:
    """How a benchmark runs its work.

    Attributes:
        mapper_for: returns the mapper for a model's audit.
        worker: the resources of a worker.
        most_rejects: the largest share of rejects that a run continues with, in [0, 1].
    """

    mapper_for: Callable[[Audit], Mapper] = serial_for
    worker: WorkerSettings = field(default_factory=lambda: WorkerSettings(gpus=1))
    most_rejects: float = MOST_REJECTS


def evaluate_models(config: BenchmarkConfig, spread: Spread = Spread()) -> list[DatasetGrades]:
    """Grade every model.

    Returns:
        One entry per data set, in the order of the models.
    """
    trainings = {path: load_train_config(path) for path in config.models}
    for training in trainings.values():
        require_known_pairs(config, training)
        require_captions(config, training)
    require_embeddings(config.embeddings, {*GRADIENT_FREE, *compared_methods(config)})
    results: dict[str, DatasetGrades] = {}
    for path, training in trainings.items():
        title, audit = dataset_title(config, training), benchmark_audit(config, path, training)
        result = results.setdefault(title, DatasetGrades(title, benchmark_cells(config, training), [], {}))
        result.grades.extend(model_grades(config, path, audit, spread))
        result.audits[path] = audit.audit
    return list(results.values())


def model_grades(config: BenchmarkConfig, path: str, audit: AuditConfig, spread: Spread) -> list[dict[str, Any]]:
    """The grades of one model. If an earlier run with the same settings computed them, they are read."""
    p = prepare(audit, spread.worker)
    if read_manifest(p.audit) is None:
        run = AuditRun(p, spread.mapper_for(p.audit), most_rejects=spread.most_rejects)
        records, baselines = run.featurize(), baseline_folders(config)
        queries = compute_queries(run)
        rows = [
            *method_grades(run, records, config.dampings, config.each),
            *baseline_grades(run, config.queries, baselines),
        ]
        write_table(p.audit, "grades.parquet", from_rows(GRADE_COLUMNS, rows))
        parts = [record for own in records.values() for record in own]
        files = ["audit.yaml", "plan.parquet", "grades.parquet", *queries, *ranking_files(run, baselines)]
        finish_audit(p.audit, files, parts, {"fingerprints": p.work.fingerprints})
    return [{"model": path, **row} for row in read_table(p.audit, "grades.parquet").to_pylist()]


def compute_queries(run: AuditRun) -> list[str]:
    """Compute phi_q of every query and return the files. Methods with the same query side share a file."""
    config = run.prepared.config
    tasks = {
        benchmark_query_file(variant, concept): BenchmarkQueryTask(variant, concept)
        for method in config.methods.values()
        for concept in config.concepts
        for variant in query_variants(method).values()
    }
    return [result.file for _, result in run.map("query", BenchmarkQueryWorker, list(tasks.values()))]


def method_grades(
    run: AuditRun, records: dict[str, list[Record]], dampings: tuple[float, ...], each: int
) -> Iterator[dict[str, Any]]:
    """The grades of every method with each kind of query, at every damping; a query has `each` samples."""
    tasks = [
        GradeTask(
            method=name,
            query_kind=kind,
            query=variant,
            records=tuple(records[name]),
            plan=tuple(run.prepared.plan),
            dampings=dampings,
            each=each,
        )
        for name, method in run.prepared.config.methods.items()
        for kind, variant in query_variants(method).items()
    ]
    for task, result in run.map("grade", GradeWorker, tasks):
        yield from ({"method": task.method, "query_kind": task.query_kind, **row} for row in result.rows)


def baseline_folders(config: BenchmarkConfig) -> dict[str, str]:
    """The baselines without gradients; by name, the folder of an embedding's weights, or "" for the others."""
    return dict.fromkeys(GRADIENT_FREE, "") | config.embeddings


def baseline_grades(run: AuditRun, queries: int, baselines: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The grades of the baselines without gradients, for `queries` queries of every concept."""
    plan = tuple(run.prepared.plan)
    tasks = [BaselineTask(name, plan, queries, folder) for name, folder in baselines.items()]
    for task, result in run.map("baseline", BaselineWorker, tasks):
        yield from ({"method": task.baseline, "query_kind": "none", **row} for row in result.rows)


def ranking_files(run: AuditRun, baselines: Iterable[str]) -> list[str]:
    """The files of ranking heads, one for each method and kind of query."""
    kinds = [(name, kind) for name, method in run.prepared.config.methods.items() for kind in query_variants(method)]
    return [ranking_file(*key) for key in (*kinds, *((name, "none") for name in baselines))]


def query_variants(method: Method) -> dict[str, Method]:
    """The method by kind of query: with its `own` query, and with the `concept` query if its own is another."""
    if method.query.direction == "concept_reward":
        return {"own": method}
    return {"own": method, "concept": replace(method, query=METHODS["concept_trak"].query)}


def evaluations_by_method(config: BenchmarkConfig) -> dict[str, int]:
    """By method, the network evaluations of one training sample; 0 for baselines without gradients."""
    methods = {name: method.train.evaluations for name, method in compared_methods(config).items()}
    return methods | dict.fromkeys(baseline_folders(config), 0)


def dataset_title(config: BenchmarkConfig, training: TrainConfig) -> str:
    """The title of the leaderboard that a model belongs to."""
    notes = [training.set]
    if training.steps == 0:
        notes.append("untrained")
    if training.wrong:
        notes.append("captions shuffled" if training.shuffled else f"{training.wrong:.0%} of captions wrong")
        notes += [f"relevant is what is {config.truth}"] if config.truth != "both" else []
    unsaid = {"": [], EACH: ["one factor of each caption unsaid"]}
    return ", ".join(notes + unsaid.get(config.unsaid, [f"{config.unsaid} unsaid"]))
