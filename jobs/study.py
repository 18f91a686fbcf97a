"""What makes a row work, one thing at a time: `python -m jobs.study [key=value ...]`.

The rows of a benchmark and their variants (`conf/study.yaml`), and the rows under other settings, each beside the row
it comes from. Writes study.md, study.html and study.parquet below `benchmarks/<name>/`; keys are those of
`jobs.benchmark`, and what is computed is kept as there, so that a killed study goes on where it stopped.
"""

from dataclasses import replace

from concept_trak.config import absolute
from concept_trak.evaluation.suite import BenchmarkConfig
from concept_trak.report.publish_evaluation import run_study
from jobs.benchmark import BenchmarkRunConfig, spread
from jobs.configure import main


def study(config: BenchmarkConfig, run: BenchmarkRunConfig = BenchmarkRunConfig()) -> int:
    """Every row, variant and run on every model, then one page."""
    config = replace(config, store=absolute(config.store))
    print(run_study(config, spread(run)))
    print(f"page       {config.store}/benchmarks/{config.name}/study.html")
    return 0


if __name__ == "__main__":
    main(study, "study", BenchmarkConfig, BenchmarkRunConfig)
