"""Change one setting of a row at a time: `python -m jobs.study [key=value ...]`.

Grades the rows of a benchmark, their variants (`conf/study.yaml`), and the rows under other settings, and compares each
with its row. Writes study.md, study.html and study.parquet to `benchmarks/<name>/`. The keys are those of
`jobs.benchmark`. Features and grades are kept in the store, so the same command resumes.
"""

from dataclasses import replace

from concept_trak.config import absolute
from concept_trak.evaluation.suite import BenchmarkConfig
from concept_trak.report.publish_evaluation import run_study
from jobs.benchmark import BenchmarkRunConfig, spread
from jobs.configure import main


def study(config: BenchmarkConfig, run: BenchmarkRunConfig = BenchmarkRunConfig()) -> int:
    """Grade every row, variant and run on every model, then write one page."""
    config = replace(config, store=absolute(config.store))
    print(run_study(config, spread(run)))
    print(f"page       {config.store}/benchmarks/{config.name}/study.html")
    return 0


if __name__ == "__main__":
    main(study, "study", BenchmarkConfig, BenchmarkRunConfig)
