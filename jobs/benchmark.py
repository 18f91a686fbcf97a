"""Which method finds the concept: `python -m jobs.benchmark [key=value ...]`.

For every model: the features of every method over its own training set (kept in the store, so a second run only reads
them), many queries per cell, and the grade of every ranking. Writes tables, a figure and a page to `store`.
"""

from dataclasses import dataclass, replace
from typing import Any

from concept_trak.config import AuditConfig
from concept_trak.retrieval import Cell
from concept_trak.rival import RIVALS
from concept_trak.schooling import TrainConfig
from concept_trak.standings import Arm, table
from concept_trak.store.commit import Store
from concept_trak.store.manifest import finish, manifest, read_table, write_table
from concept_trak.store.tables import from_rows
from jobs.audit import executor
from jobs.configure import absolute, main
from jobs.contest import graded, inquire, rankings, rivals
from jobs.entrants import BenchmarkConfig, audit_of, cells_of, require_captions, require_pairs, rows_of, trained
from jobs.failure import ended
from jobs.prepare import prepare
from jobs.progress import Progress
from jobs.run import Run
from jobs.tables import GRADED, as_text, publish, publish_tops


def benchmark(config: BenchmarkConfig) -> int:
    """Every model, then one table per data set; returns the exit code."""
    return ended(lambda: _benchmark(replace(config, store=absolute(config.store))))


def _benchmark(config: BenchmarkConfig) -> int:
    found, reference = compared(config), Arm(config.reference, "own")
    tables = [table(one.title, one.grades, one.cells, reference, costs(config)) for one in found]
    store, grades = Store(config.store), {one.title: one.grades for one in found}
    publish(store, config.name, grades, tables)
    publish_tops(store, config.name, {one.title: one.audits for one in found}, tables, config.rows)
    for one in tables:
        print(as_text(one))
    print(f"\npage       {config.store}/benchmarks/{config.name}/benchmark.html")
    return 0


@dataclass(frozen=True)
class Compared:
    """One data set: the grades of all its models, and the audit that each model's were computed in."""

    title: str
    cells: list[Cell]
    grades: list[dict[str, Any]]
    audits: dict[str, str]


def compared(config: BenchmarkConfig) -> list[Compared]:
    """Every model graded, by data set."""
    found: dict[str, Compared] = {}
    models = {path: trained(path) for path in config.models}
    for made in models.values():
        require_pairs(config, made)
        require_captions(config, made)
    for path, made in models.items():
        title = title_of(config, made)
        one = found.setdefault(title, Compared(title, cells_of(config, made), [], {}))
        audit = audit_of(config, path, made)
        one.grades.extend(contest(config, path, audit))
        one.audits[path] = audit.audit
    return list(found.values())


def costs(config: BenchmarkConfig) -> dict[str, int]:
    """Network evaluations of a training sample by method."""
    return {name: m.train.evaluations for name, m in rows_of(config).items()} | dict.fromkeys(RIVALS, 0)


def title_of(config: BenchmarkConfig, made: TrainConfig) -> str:
    """Models with one title stand in one table."""
    notes = [made.set]
    if made.steps == 0:
        notes.append("untrained")
    if made.wrong:
        notes.append("captions shuffled" if made.shuffled else f"{made.wrong:.0%} of captions wrong")
        notes += [f"found is what is {config.truth}"] if config.truth != "both" else []
    return ", ".join(notes + ([f"{config.unsaid} unsaid"] if config.unsaid else []))


def contest(config: BenchmarkConfig, path: str, audit: AuditConfig) -> list[dict[str, Any]]:
    """One model's grades; those of an earlier run with the same settings are read."""
    p = prepare(audit)
    if manifest(p.audit) is None:
        run = Run(p, executor(audit), Progress(p.audit, config.interval))
        records = run.featurize()
        inquired = inquire(run)
        rows = [*graded(run, records, config.dampings, config.each), *rivals(run, config.queries)]
        write_table(p.audit, "grades.parquet", from_rows(GRADED, rows))
        parts = [record for found in records.values() for record in found]
        files = ["audit.yaml", "plan.parquet", "grades.parquet", *inquired, *rankings(run)]
        finish(p.audit, files, parts, {"fingerprints": p.work.fingerprints})
    return [{"model": path, **row} for row in read_table(p.audit, "grades.parquet").to_pylist()]


if __name__ == "__main__":
    main(BenchmarkConfig, "benchmark", benchmark)
