"""Compare methods by how well they find a concept: `python -m jobs.benchmark [key=value ...]`.

Computes, for every model, the features of every method over the model's training set, many queries per cell, and the
grades of every ranking. Features are kept in the store, and a second run reads them. Writes tables, a figure and a page
to `store`.
"""

from dataclasses import dataclass, replace

from concept_trak.config import absolute
from concept_trak.evaluation.pipeline import Spread
from concept_trak.evaluation.suite import BenchmarkConfig
from concept_trak.report.publish_evaluation import run_benchmark
from jobs.configure import main
from jobs.execute import ExecutorMapper, RunConfig, worker_settings


@dataclass(frozen=True)
class BenchmarkRunConfig(RunConfig):
    """How the work of a benchmark is done."""

    interval: float = 30.0
    """Seconds between two lines of progress without a terminal, and between two writes of progress.json."""


def spread(run: RunConfig) -> Spread:
    """How to run the audits of all models on one executor."""
    return Spread(ExecutorMapper(run).for_audit, worker_settings(run.cluster), run.budget.rejects)


def benchmark(config: BenchmarkConfig, run: BenchmarkRunConfig = BenchmarkRunConfig()) -> int:
    """Grade every model, then print one table for each data set."""
    config = replace(config, store=absolute(config.store))
    for text in run_benchmark(config, spread(run)):
        print(text)
    print(f"\npage       {config.store}/benchmarks/{config.name}/benchmark.html")
    return 0


if __name__ == "__main__":
    main(benchmark, "benchmark", BenchmarkConfig, BenchmarkRunConfig)
