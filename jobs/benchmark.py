"""Which method finds the concept: `python -m jobs.benchmark [key=value ...]`.

For every model: the features of every method over its own training set (kept in the store, so a second run only reads
them), many queries per cell, and the grade of every ranking. Writes tables, a figure and a page to `store`.
"""

from dataclasses import replace

from concept_trak.config import absolute
from concept_trak.evaluation.leaderboard import Arm, table
from concept_trak.evaluation.pipeline import compared, costs
from concept_trak.evaluation.suite import (
    BenchmarkConfig,
)
from concept_trak.report.benchmark_page import as_text, publish, publish_tops
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.exit_codes import ended


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


if __name__ == "__main__":
    main(BenchmarkConfig, "benchmark", benchmark)
