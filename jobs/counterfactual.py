"""The causal test of a benchmark's rankings: `python -m jobs.counterfactual [key=value ...]`.

For every method, concept and share K of the concept's carriers, trains the model from scratch without the first K
images of the method's ranking, from several seeds. A control with all images is trained from the same seeds. Every
retraining is one file in the store and is done once. Writes counterfactual.parquet, .md and .html to
`benchmarks/<name>/`.

The scored samples must be the whole training set, because images outside the rankings would still teach the concept.
"""

from dataclasses import replace

from concept_trak.config import absolute
from concept_trak.evaluation.counterfactual import CounterfactualConfig
from concept_trak.report.publish_evaluation import run_counterfactual
from jobs.configure import main
from jobs.execute import ExecutorMapper, RunConfig, worker_settings


def counterfactual(config: CounterfactualConfig, run: RunConfig = RunConfig()) -> int:
    """Do the missing retrainings, then write the page."""
    config = replace(config, store=absolute(config.store))
    print(run_counterfactual(config, ExecutorMapper(run), worker_settings(run.cluster).threads))
    print(f"page       {config.store}/benchmarks/{config.name}/counterfactual.html")
    return 0


if __name__ == "__main__":
    main(counterfactual, "counterfactual", CounterfactualConfig, RunConfig)
