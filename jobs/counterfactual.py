"""The causal test of a benchmark's rankings: `python -m jobs.counterfactual [key=value ...]`.

For every arm, concept and share K of the concept's carriers, the model is trained from scratch without the first K of
the arm's ranking, from several seeds, beside a control that keeps everything. Every retraining is one file in the
store and is done once. Writes counterfactual.parquet, .md and .html below `benchmarks/<name>/`.

The scored samples must be the whole training set: images that no ranking knows would go on teaching the concept.
"""

from collections.abc import Sequence
from dataclasses import replace

from cluster.executor import Outcome, Resources, Task
from concept_trak.config import AuditConfig, absolute
from concept_trak.evaluation.counterfactual import (
    Bench,
    Case,
    CounterfactualConfig,
    Retrain,
    Retraining,
    cases_of,
    effects,
    tops_of,
)
from concept_trak.evaluation.suite import trained
from concept_trak.report.counterfactual_page import publish
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.execute import executor
from jobs.exit_codes import ended, failure


def counterfactual(config: CounterfactualConfig) -> int:
    """Every retraining that is not there yet, then the page; returns the exit code."""
    return ended(lambda: _counterfactual(replace(config, store=absolute(config.store))))


def _counterfactual(config: CounterfactualConfig) -> int:
    made, store = trained(config.folder), Store(config.store)
    cases = cases_of(config, made, tops_of(config, made, store))
    folder = f"benchmarks/{config.name}/retrained"
    bench = Bench(config.store, folder, made, config.samples, max(1, int(config.cluster.cpus)))
    retrain(config, bench, cases)
    lines = list(zip(cases, effects(bench, config.folder, cases), strict=True))
    print(publish(store, config.name, made, lines))
    print(f"page       {config.store}/benchmarks/{config.name}/counterfactual.html")
    return 0


def retrain(config: CounterfactualConfig, bench: Bench, cases: Sequence[Case]) -> None:
    """What is missing of the controls and the retrainings, each once."""
    store, controls = Store(bench.store), [Retraining(seed) for seed in config.seeds]
    wanted = dict.fromkeys([*controls, *(case.retraining for case in cases)])
    missing = [item for item in wanted if store.size(bench.file(item)) is None]
    print(f"retrain    {len(wanted)} models, {len(missing)} of them to train", flush=True)
    if not missing:
        return
    c, failed = config.cluster, list[Outcome]()
    run = executor(AuditConfig(cluster=c, budget=config.budget))
    task = Task(Retrain, bench)
    for i, outcome in enumerate(run.map(task, missing, Resources(c.cpus, c.gpus, c.memory)), 1):
        failed += [outcome] if outcome.failure else []
        print(f"retrain    {i}/{len(missing)}, {outcome.seconds:.0f} s", flush=True)
    if failed:
        raise failure("retrain", failed, len(missing))


if __name__ == "__main__":
    main(CounterfactualConfig, "counterfactual", counterfactual)
