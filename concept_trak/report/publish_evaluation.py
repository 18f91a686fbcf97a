"""From a configuration to published pages: the benchmark, its study and its causal test, each in one call."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from concept_trak.audit.mapper import Mapper, serial
from concept_trak.evaluation.counterfactual import Bench, CounterfactualConfig, cases_of, effects, retrain, tops_of
from concept_trak.evaluation.leaderboard import Arm, table
from concept_trak.evaluation.pipeline import Spread, compared, costs
from concept_trak.evaluation.study import RUNS, families_of, grades_of, name_of, renamed, run_of
from concept_trak.evaluation.suite import BenchmarkConfig, trained
from concept_trak.report import benchmark_page, counterfactual_page, study_page
from concept_trak.report.table_page import as_markdown
from concept_trak.store.store import Store


def run_benchmark(config: BenchmarkConfig, spread: Spread = Spread()) -> Iterator[str]:
    """Grade every model, publish the tables and the page, and yield each table as Markdown."""
    results, reference = compared(config, spread), Arm(config.reference, "own")
    tables = [table(r.title, r.grades, r.cells, reference, costs(config)) for r in results]
    store = Store(config.store)
    benchmark_page.publish(store, config.name, {r.title: r.grades for r in results}, tables)
    benchmark_page.publish_tops(store, config.name, {r.title: r.audits for r in results}, tables, config.rows)
    yield from map(benchmark_page.as_text, tables)


def run_study(config: BenchmarkConfig, spread: Spread = Spread(), runs: Sequence[Mapping[str, Any]] = RUNS) -> str:
    """Grade every row, variant and run on every model, publish the page, and return it as Markdown."""
    families, grades, cost = families_of(config, runs), dict[str, list[dict[str, Any]]](), costs(config)
    results = compared(config, spread)
    for result in results:
        grades[result.title] = [row for row in result.grades if row["asked"] != "concept"]
    for change in runs:
        for result in compared(run_of(config, families, change), spread):
            grades[result.title] += [renamed(row, change) for row in result.grades if row["asked"] == "own"]
    cost |= {name_of(f.row, change): cost[f.row] for f in families for change in runs}
    tables = [
        table(f"{r.title}, from {f.row}", list(grades_of(f, grades[r.title])), r.cells, Arm(f.row, "own"), cost)
        for r in results
        for f in families
    ]
    page = study_page.sheet(tables, families * len(results))
    study_page.publish_study(Store(config.store), config.name, tables, page)
    return as_markdown(page)


def run_counterfactual(config: CounterfactualConfig, mapper: Mapper = serial, threads: int = 1) -> str:
    """Retrain what is missing, publish the page, and return it as Markdown."""
    made, store = trained(config.folder), Store(config.store)
    cases = cases_of(config, made, tops_of(config, made, store))
    bench = Bench(config.store, f"benchmarks/{config.name}/retrained", made, config.samples, threads)
    retrain(config, bench, cases, mapper)
    lines = list(zip(cases, effects(bench, config.folder, cases), strict=True))
    return counterfactual_page.publish(store, config.name, made, lines)
