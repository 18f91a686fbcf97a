"""The causal test of a benchmark's rankings: `python -m jobs.counterfactual [key=value ...]`.

For every arm, concept and share K of the concept's carriers, the model is trained from scratch without the first K of
the arm's ranking, from several seeds, beside a control that keeps everything. Every retraining is one file in the
store and is done once. Writes counterfactual.parquet, .md and .html below `benchmarks/<name>/`.

The scored samples must be the whole training set: images that no ranking knows would go on teaching the concept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.executor import Resources, Task
from concept_trak.config import AuditConfig, BudgetConfig, ClusterConfig
from concept_trak.counterfactual import Bench, Effect, Retraining, decoded, effect, judge_of
from concept_trak.data.two_factors import caption
from concept_trak.retrieval import cells
from concept_trak.schooling import TrainConfig
from concept_trak.store.commit import Store
from concept_trak.store.tables import read_parquet
from jobs.audit import executor
from jobs.configure import absolute, main
from jobs.effects import Case, publish
from jobs.entrants import trained
from jobs.failure import ended, failure


@dataclass(frozen=True)
class CounterfactualConfig:
    store: str = "results/benchmark"
    """The folder of the benchmark."""
    name: str = "toy"
    """Its name: its rankings lie in benchmarks/<name>/tops.parquet."""
    folder: str = "results/models/toy-0"
    """Of one of its models, named as there."""
    arms: tuple[str, ...] = ("fit_trak", "concept_trak", "trak", "lookup", "random")
    """Whose first K are left out; `trak/concept` is a method asked with the concept query."""
    pairs: tuple[str, ...] = ("a red triangle",)
    """Captions of the pairs whose two factors are the concepts; empty is all."""
    shares: tuple[float, ...] = (0.9, 1.0)
    """K as shares of the images that show the concept, in 0 ... 1."""
    seeds: tuple[int, ...] = (1, 2)
    """Of the initial weights and the batches of retrainings."""
    samples: int = 32
    """Pictures per pair and retraining."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds or not self.shares:
            raise ValueError("arms, seeds and shares must each have an entry")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares={list(self.shares)}; expected numbers above 0, at most 1")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}; expected at least 1")


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


def tops_of(config: CounterfactualConfig, made: TrainConfig, store: Store) -> dict[tuple[str, str], list[str]]:
    """By arm and concept the ids of the benchmark's ranking, best first; as many as there are carriers."""
    name = f"benchmarks/{config.name}/tops.parquet"
    if store.size(name) is None:
        raise ValueError(f"{config.store}/{name} is not there; run python -m jobs.benchmark name={config.name} first")
    rows = [row for row in read_parquet(store.read(name)).to_pylist() if row["model"] == config.folder]
    found: dict[tuple[str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        arm = row["method"] + ("/concept" if row["asked"] == "concept" else "")
        found.setdefault((arm, row["concept"]), []).append(row["sample_id"])
    if not found:
        raise ValueError(
            f"folder={config.folder!r} is none of the benchmark {config.name}; name it as models= did there"
        )
    if rows[0]["scored"] != made.images:
        raise ValueError(
            f"the benchmark {config.name} scored {rows[0]['scored']} of the {made.images} training images; expected "
            "all, for those not scored teach the concept too: give it rows=<the model's images>"
        )
    return found


def cases_of(config: CounterfactualConfig, made: TrainConfig, tops: dict[tuple[str, str], list[str]]) -> list[Case]:
    """Every arm, concept, share and seed, in this order."""
    known = list(dict.fromkeys(arm for arm, _ in tops))
    if unknown := [arm for arm in config.arms if arm not in known]:
        raise ValueError(f"arms: the benchmark has no {unknown[0]!r}; expected some of: {', '.join(known)}")
    asked = [c for c in cells(made.kinds) if not config.pairs or caption(*c.pair) in config.pairs]
    if missing := [c.name for c in asked if (config.arms[0], c.name) not in tops] or ([""] * (not asked)):
        raise ValueError(f"pairs={list(config.pairs)}: the benchmark asked about no such pair of {made.set} {missing}")
    return [
        Case(arm, cell, share, len(top), Retraining(seed, tuple(sorted(top[: round(share * len(top))]))))
        for arm in config.arms
        for cell in asked
        for share in config.shares
        for seed in config.seeds
        for top in (tops[arm, cell.name],)
    ]


def retrain(config: CounterfactualConfig, bench: Bench, cases: Sequence[Case]) -> None:
    """What is missing of the controls and the retrainings, each once."""
    store, controls = Store(bench.store), [Retraining(seed) for seed in config.seeds]
    wanted = dict.fromkeys([*controls, *(case.retraining for case in cases)])
    missing = [item for item in wanted if store.size(bench.file(item)) is None]
    print(f"retrain    {len(wanted)} models, {len(missing)} of them to train", flush=True)
    if not missing:
        return
    c, failed = config.cluster, list[str]()
    run = executor(AuditConfig(cluster=c, budget=config.budget))
    task = Task("concept_trak.counterfactual:Retrain", bench)
    for i, outcome in enumerate(run.map(task, missing, Resources(c.cpus, c.gpus, c.memory)), 1):
        failed += [outcome.error] if outcome.error else []
        print(f"retrain    {i}/{len(missing)}, {outcome.seconds:.0f} s", flush=True)
    if failed:
        raise failure("retrain", failed, len(missing))


def effects(bench: Bench, model: str, cases: Sequence[Case]) -> list[Effect]:
    """What each case's retraining did, against the control of its seed."""
    store, kinds, classifier = Store(bench.store), bench.made.kinds, judge_of(model, bench.made.kinds)
    seen: dict[Retraining, Any] = {}

    def pictures(item: Retraining) -> Any:
        if item not in seen:
            seen[item] = decoded(store.read(bench.file(item)))
        return seen[item]

    return [
        effect(c.cell, kinds, classifier, pictures(Retraining(c.retraining.seed)), pictures(c.retraining))
        for c in cases
    ]


if __name__ == "__main__":
    main(CounterfactualConfig, "counterfactual", counterfactual)
