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
from concept_trak.evaluation.damping_choice import damping_lines
from concept_trak.evaluation.leaderboard import Leaderboard, Ranker, build_leaderboard
from concept_trak.evaluation.pipeline import DatasetGrades, Spread, evaluate_models, evaluations_by_method
from concept_trak.evaluation.study import (
    RUNS,
    VariedRow,
    changed_name,
    renamed_grade,
    varied_benchmark,
    varied_grades,
    varied_rows,
)
from concept_trak.evaluation.suite import BenchmarkConfig, load_train_config
from concept_trak.report.benchmark_page import as_text, dampings_as_text, publish_benchmark, publish_tops
from concept_trak.report.counterfactual_page import publish_counterfactual
from concept_trak.report.study_page import publish_study, study_page
from concept_trak.report.table_page import as_markdown
from concept_trak.store.store import Store


def run_benchmark(config: BenchmarkConfig, spread: Spread = Spread()) -> Iterator[str]:
    """Grade every model, publish the tables and the page, and yield each leaderboard as Markdown."""
    results, reference = evaluate_models(config, spread), Ranker(config.reference, "own")
    evaluations = evaluations_by_method(config)
    boards = [build_leaderboard(r.title, r.grades, r.cells, reference, evaluations) for r in results]
    store = Store(config.store)
    publish_benchmark(store, config.name, {r.title: r.grades for r in results}, boards)
    publish_tops(store, config.name, {r.title: r.audits for r in results}, boards, config.rows)
    yield from map(as_text, boards)
    yield from (dampings_as_text(r.title, damping_lines(r.grades, r.cells, reference)) for r in results)


def run_study(config: BenchmarkConfig, spread: Spread = Spread(), runs: Sequence[Mapping[str, Any]] = RUNS) -> str:
    """Grade every row, variant and run on every model, publish the page, and return it as Markdown."""
    rows, grades = varied_rows(config, runs), dict[str, list[dict[str, Any]]]()
    results = evaluate_models(config, spread)
    for result in results:
        grades[result.title] = [grade for grade in result.grades if grade["query_kind"] != "concept"]
    for change in runs:
        for result in evaluate_models(varied_benchmark(config, rows, change), spread):
            own = [grade for grade in result.grades if grade["query_kind"] == "own"]
            grades[result.title] += [renamed_grade(grade, change) for grade in own]
    evaluations = evaluations_by_method(config)
    evaluations |= {changed_name(row.row, change): evaluations[row.row] for row in rows for change in runs}

    def board(result: DatasetGrades, row: VariedRow) -> Leaderboard:
        own, reference = list(varied_grades(row, grades[result.title])), Ranker(row.row, "own")
        return build_leaderboard(f"{result.title}, from {row.row}", own, result.cells, reference, evaluations)

    boards = [board(result, row) for result in results for row in rows]
    page = study_page(boards, rows * len(results))
    publish_study(Store(config.store), config.name, boards, page)
    return as_markdown(page)


def run_counterfactual(config: CounterfactualConfig, mapper: Mapper = serial, threads: int = 1) -> str:
    """Train the models that are missing, publish the page, and return it as Markdown."""
    training, store = load_train_config(config.folder), Store(config.store)
    removals = removals_of(config, training, ranking_heads(config, training, store))
    settings = RetrainSettings(
        store=config.store,
        folder=f"benchmarks/{config.name}/retrained",
        training=training,
        samples=config.samples,
        threads=threads,
    )
    retrain(config, settings, removals, mapper)
    lines = list(zip(removals, effects(settings, config.folder, removals), strict=True))
    return publish_counterfactual(store, config.name, training, lines)
