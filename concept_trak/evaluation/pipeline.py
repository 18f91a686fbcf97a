"""The stages of a benchmark on one model, beside those of an audit: its queries, and the grades of every ranking."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from concept_trak.attribution.method import METHODS, Method
from concept_trak.audit.mapper import Mapper, serial
from concept_trak.audit.pipeline import MOST_REJECTS, AuditRun
from concept_trak.audit.prepare import prepare
from concept_trak.config import AuditConfig, WorkerSettings
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
from concept_trak.evaluation.training.benchmark_models import TrainConfig
from concept_trak.store.manifest import Audit, finish_audit, read_manifest, read_table, write_table
from concept_trak.store.records import Record
from concept_trak.store.tables import from_rows


def compute_queries(run: AuditRun) -> list[str]:
    """phi_q of every query of every side, once for all that ask alike; returns the files."""
    config = run.prepared.config
    asked = {
        benchmark_query_file(m, c): BenchmarkQueryTask(m, c)
        for row, c in product(config.methods.values(), config.concepts)
        for m in query_variants(row).values()
    }
    return [name for _, name in run.map("query", BenchmarkQueryWorker, list(asked.values()))]


def method_grades(
    run: AuditRun, records: dict[str, list[Record]], dampings: tuple[float, ...], each: int
) -> Iterator[dict[str, Any]]:
    """The grades of every method with every side's queries, of `each` samples, at every damping."""
    plan = tuple(run.prepared.plan)
    items = [
        GradeTask(name, asked, side, tuple(records[name]), plan, dampings, each)
        for name, method in run.prepared.config.methods.items()
        for asked, side in query_variants(method).items()
    ]
    for item, found in run.map("grade", GradeWorker, items):
        yield from ({"method": item.method, "asked": item.asked, **row} for row in found)


def baseline_grades(run: AuditRun, queries: int) -> Iterator[dict[str, Any]]:
    """The grades of what needs no gradient, against as many queries of every concept."""
    items = [BaselineTask(name, tuple(run.prepared.plan), queries) for name in GRADIENT_FREE]
    for item, found in run.map("rival", BaselineWorker, items):
        yield from ({"method": item.rival, "asked": "none", **row} for row in found)


def ranking_files(run: AuditRun) -> list[str]:
    """The files of every arm's ranking, which its grading wrote."""
    arms = [(name, asked) for name, method in run.prepared.config.methods.items() for asked in query_variants(method)]
    return [ranking_file(*arm) for arm in (*arms, *((rival, "none") for rival in GRADIENT_FREE))]


def query_variants(method: Method) -> dict[str, Method]:
    """The method with its own query, and a whole-image row with the concept query too."""
    if method.query.direction == "concept_reward":
        return {"own": method}
    return {"own": method, "concept": replace(method, query=METHODS["concept_trak"].query)}


@dataclass(frozen=True)
class DatasetGrades:
    """One data set: the grades of all its models, and the audit that each model's were computed in."""

    title: str
    cells: list[Cell]
    grades: list[dict[str, Any]]
    audits: dict[str, str]


def serial_for(audit: Audit) -> Mapper:
    """The mapper of any audit that is this process."""
    return serial


@dataclass(frozen=True)
class Spread:
    """How a benchmark spreads its work: the mapper of each model's audit, what a worker may use, and the share of
    rejects that stops a run."""

    mapper_for: Callable[[Audit], Mapper] = serial_for
    worker: WorkerSettings = field(default_factory=lambda: WorkerSettings(gpu=True))
    most_rejects: float = MOST_REJECTS


def evaluate_models(config: BenchmarkConfig, spread: Spread = Spread()) -> list[DatasetGrades]:
    """Every model graded, by data set."""
    found: dict[str, DatasetGrades] = {}
    models = {path: load_train_config(path) for path in config.models}
    for made in models.values():
        require_known_pairs(config, made)
        require_captions(config, made)
    for path, made in models.items():
        title = dataset_title(config, made)
        one = found.setdefault(title, DatasetGrades(title, benchmark_cells(config, made), [], {}))
        audit = benchmark_audit(config, path, made)
        one.grades.extend(model_grades(config, path, audit, spread))
        one.audits[path] = audit.audit
    return list(found.values())


def evaluations_by_method(config: BenchmarkConfig) -> dict[str, int]:
    """Network evaluations of a training sample by method."""
    return {name: m.train.evaluations for name, m in compared_methods(config).items()} | dict.fromkeys(GRADIENT_FREE, 0)


def dataset_title(config: BenchmarkConfig, made: TrainConfig) -> str:
    """Models with one title stand in one table."""
    notes = [made.set]
    if made.steps == 0:
        notes.append("untrained")
    if made.wrong:
        notes.append("captions shuffled" if made.shuffled else f"{made.wrong:.0%} of captions wrong")
        notes += [f"found is what is {config.truth}"] if config.truth != "both" else []
    return ", ".join(notes + ([f"{config.unsaid} unsaid"] if config.unsaid else []))


def model_grades(config: BenchmarkConfig, path: str, audit: AuditConfig, spread: Spread) -> list[dict[str, Any]]:
    """One model's grades; those of an earlier run with the same settings are read."""
    p = prepare(audit, spread.worker)
    if read_manifest(p.audit) is None:
        run = AuditRun(p, spread.mapper_for(p.audit), most_rejects=spread.most_rejects)
        records = run.featurize()
        inquired = compute_queries(run)
        rows = [*method_grades(run, records, config.dampings, config.each), *baseline_grades(run, config.queries)]
        write_table(p.audit, "grades.parquet", from_rows(GRADE_COLUMNS, rows))
        parts = [record for found in records.values() for record in found]
        files = ["audit.yaml", "plan.parquet", "grades.parquet", *inquired, *ranking_files(run)]
        finish_audit(p.audit, files, parts, {"fingerprints": p.work.fingerprints})
    return [{"model": path, **row} for row in read_table(p.audit, "grades.parquet").to_pylist()]
