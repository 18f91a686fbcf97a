"""From a configuration to published pages: the benchmark, its study and its causal test, each in one call."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from concept_trak.audit.mapper import Mapper, serial
from concept_trak.evaluation.counterfactual import (
    CounterfactualConfig,
    RetrainSettings,
    effects,
    ranking_heads,
    removals_of,
    retrain,
)
from concept_trak.evaluation.leaderboard import Ranker, build_leaderboard
from concept_trak.evaluation.pipeline import Spread, evaluate_models, evaluations_by_method
from concept_trak.evaluation.study import (
    RUNS,
    changed_name,
    renamed_grade,
    varied_benchmark,
    varied_grades,
    varied_rows,
)
from concept_trak.evaluation.suite import BenchmarkConfig, load_train_config
from concept_trak.report import benchmark_page, counterfactual_page, study_page
from concept_trak.report.table_page import as_markdown
from concept_trak.store.store import Store


def run_benchmark(config: BenchmarkConfig, spread: Spread = Spread()) -> Iterator[str]:
    """Grade every model, publish the tables and the page, and yield each table as Markdown."""
    results, reference = evaluate_models(config, spread), Ranker(config.reference, "own")
    tables = [build_leaderboard(r.title, r.grades, r.cells, reference, evaluations_by_method(config)) for r in results]
    store = Store(config.store)
    benchmark_page.publish_benchmark(store, config.name, {r.title: r.grades for r in results}, tables)
    benchmark_page.publish_tops(store, config.name, {r.title: r.audits for r in results}, tables, config.rows)
    yield from map(benchmark_page.as_text, tables)


def run_study(config: BenchmarkConfig, spread: Spread = Spread(), runs: Sequence[Mapping[str, Any]] = RUNS) -> str:
    """Grade every row, variant and run on every model, publish the page, and return it as Markdown."""
    families, grades, cost = varied_rows(config, runs), dict[str, list[dict[str, Any]]](), evaluations_by_method(config)
    results = evaluate_models(config, spread)
    for result in results:
        grades[result.title] = [row for row in result.grades if row["asked"] != "concept"]
    for change in runs:
        for result in evaluate_models(varied_benchmark(config, families, change), spread):
            grades[result.title] += [renamed_grade(row, change) for row in result.grades if row["asked"] == "own"]
    cost |= {changed_name(f.row, change): cost[f.row] for f in families for change in runs}
    tables = [
        build_leaderboard(
            f"{r.title}, from {f.row}", list(varied_grades(f, grades[r.title])), r.cells, Ranker(f.row, "own"), cost
        )
        for r in results
        for f in families
    ]
    page = study_page.study_page(tables, families * len(results))
    study_page.publish_study(Store(config.store), config.name, tables, page)
    return as_markdown(page)


def run_counterfactual(config: CounterfactualConfig, mapper: Mapper = serial, threads: int = 1) -> str:
    """Retrain what is missing, publish the page, and return it as Markdown."""
    made, store = load_train_config(config.folder), Store(config.store)
    cases = removals_of(config, made, ranking_heads(config, made, store))
    bench = RetrainSettings(config.store, f"benchmarks/{config.name}/retrained", made, config.samples, threads)
    retrain(config, bench, cases, mapper)
    lines = list(zip(cases, effects(bench, config.folder, cases), strict=True))
    return counterfactual_page.publish_counterfactual(store, config.name, made, lines)
