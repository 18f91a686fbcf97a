"""Which parameters hold a concept: `python -m jobs.components [key=value ...]`.

Every (concept, seed) is one trajectory and one file in the store, measured once; then the tables of every concept and,
with `edit.out`, a copy of the model without what holds it. The same command goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from cluster.executor import Resources, Task
from concept_trak import calibration
from concept_trak.ablation import Choice
from concept_trak.accrual import Case, Concluded, Edit, Inquest, Unit
from concept_trak.calibration import Trials
from concept_trak.casebook import open_book
from concept_trak.components import OBJECTIVES
from concept_trak.concept import Concept
from concept_trak.config import AuditConfig, BudgetConfig, ClusterConfig, ModelConfig
from concept_trak.data.image import read
from concept_trak.dose import ARMS, DOSES, Dose
from concept_trak.gate import Gate
from concept_trak.hearing import require_heard, require_pairs
from concept_trak.probe import Probe
from concept_trak.specificity import measured_for
from concept_trak.stages import open_model
from concept_trak.store.commit import Store
from concept_trak.store.tables import from_rows, to_parquet
from jobs.audit import executor
from jobs.configure import absolute, main
from jobs.failure import ended, failure


@dataclass(frozen=True)
class EditConfig:
    out: str = ""
    """The folder of the edited model, which must not exist; empty edits nothing."""
    choice: Choice = field(default_factory=Choice)
    factor: float = 0.0
    """What the chosen parameters are multiplied by, in 0 ... 1: 0 zeroes them."""
    gate: Gate = field(default_factory=Gate)
    """erase: what the model must show of the concept to begin with."""

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1:
            raise ValueError(f"edit.factor={self.factor}; expected at least 0 and less than 1")


@dataclass(frozen=True)
class CalibrationConfig:
    fractions: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Shares of all parameters that are ablated at random."""
    ablations: int = 0
    """How many at each fraction; 0 skips the calibration. CAD's own has 1,000."""

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < f < 1 for f in self.fractions) or self.ablations < 0:
            raise ValueError(f"calibration={self}; expected fractions above 0 and below 1, and ablations >= 0")


@dataclass(frozen=True)
class ComponentsConfig:
    store: str = "results"
    name: str = "demo"
    """The tables lie in components/<name>/."""
    model: ModelConfig = field(default_factory=ModelConfig)
    concepts: tuple[Concept, ...] = ()
    """As in an audit; `samples` is not used, and `truth` only tells the gate's judge what to look for. Those of one
    name are one concept with several prompts."""
    references: tuple[Concept, ...] = ()
    """What an edit is to leave as it is (edit.choice.against); those with a concept's own name are none of its."""
    objective: str = "erase"
    """erase: what the concept's prediction differs by; amplify: how well images of the concept are denoised."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Each is one trajectory of every concept."""
    probe: Probe = field(default_factory=lambda: Probe("sampling", "concept_reward"))
    """erase: points, every, guidance and eta of the sampling; amplify: times of the noise."""
    unit: bool = False
    """Whether each state's gradient is divided by its norm."""
    top: int = 100
    """Largest positive and negative single parameters that are listed."""
    edit: EditConfig = field(default_factory=EditConfig)
    doses: tuple[float, ...] = ()
    """Ratios at which edit.choice is tried, unwritten, for what the model then draws (shapes of jobs.train only)."""
    samples: int = 8
    """Pictures per prompt and dose."""
    pictures_seed: int = 0
    """Names the noises they start from: choose a dose on some, and report it on others."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r}; expected one of: {', '.join(OBJECTIVES)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}; expected at least one, none twice")
        if min(self.top, self.samples) < 1:
            raise ValueError(f"top={self.top}, samples={self.samples}; expected at least 1")
        if self.calibration.ablations and (self.unit or self.objective != "erase"):
            raise ValueError(
                "calibration predicts J of erase itself; set unit=false and objective=erase, or calibration.ablations=0"
            )
        require_pairs(self.concepts)
        if self.edit.out and (asked := len({concept.name for concept in self.concepts})) != 1:
            raise ValueError(f"edit.out edits for one concept, and {asked} are asked; give one")
        if self.edit.out and (self.model.weights or self.model.lora or self.model.embeddings):
            raise ValueError(
                "edit.out writes the directory at model.path, and model.weights, lora and embeddings lie beside it; "
                "save the model as one pipeline first, with fuse_lora() for a LoRA"
            )


def components(config: ComponentsConfig) -> int:
    """Every trajectory that is not there yet, then the tables and the edit; returns the exit code."""
    return ended(lambda: _components(replace(config, store=absolute(config.store))))


def _components(config: ComponentsConfig) -> int:
    for key, value, example in (
        ("model.path", config.model.path, "model.path=assets/demo"),
        ("concepts", config.concepts, "concepts=[{name: red, prompt: a red square, without_prompt: a square}]"),
    ):
        if not value:
            raise ValueError(f"{key} is not set; expected something like {example}")
    inquest, cases = inquest_of(config), cases_of(config)
    units = {inquest.file(unit): unit for c in cases for some in (c.units, *c.references) for unit in some}
    open_book(Store(config.store), config.name, list(units))
    measure(config, inquest, units)
    for _, found in mapped(config, "conclude", Task("concept_trak.accrual:Conclude", inquest), cases):
        print(told(found, config.objective))
    print(f"tables     {config.store}/components/{config.name}/components_groups/*.parquet, components_top/*.parquet")
    if config.doses:
        dosed(config, inquest, cases)
    if config.calibration.ablations:
        calibrated(config, inquest, cases)
    if e := config.edit if config.edit.out else None:
        changed = Edit(inquest)(cases[0], e.choice, e.factor, e.out, e.gate)
        print(f"edited     {changed} parameters times {e.factor:g}: {e.out}")
    return 0


def inquest_of(config: ComponentsConfig) -> Inquest:
    """What workers are told; mistakes in the store and the model are found here, before they run."""
    Store(config.store).probe()
    whole = AuditConfig(store=config.store, model=config.model, cluster=config.cluster, budget=config.budget)
    denoiser = open_model(whole)
    for concept in config.concepts:
        require_heard(denoiser, concept)
    identity = denoiser.identity()
    return Inquest(whole, config.name, config.objective, config.probe, config.unit, config.top, identity)


def cases_of(config: ComponentsConfig) -> list[Case]:
    """By concept, its units in the order of prompts and seeds: the order in which they are added."""
    against = config.edit.choice.against
    held = {} if against == "none" else by_name(config, config.references, measured_for(against, config.objective))
    asked = by_name(config, config.concepts, config.objective)
    return [
        Case(units, tuple(theirs for other, theirs in held.items() if other != name)) for name, units in asked.items()
    ]


def by_name(config: ComponentsConfig, concepts: Sequence[Concept], objective: str) -> dict[str, tuple[Unit, ...]]:
    found = dict[str, tuple[Unit, ...]]()
    for c in concepts:
        units = (Unit(c, objective, seed, read(c.image) if c.image else b"") for seed in sorted(config.seeds))
        found[c.name] = (*found.get(c.name, ()), *units)
    return found


def measure(config: ComponentsConfig, inquest: Inquest, units: Mapping[str, Unit]) -> None:
    """The trajectories, by their files, that have none yet."""
    store = Store(config.store)
    missing = [unit for name, unit in units.items() if store.size(name) is None]
    print(f"measure    {len(units)} trajectories, {len(missing)} of them to measure", flush=True)
    for _ in mapped(config, "measure", Task("concept_trak.accrual:Measure", inquest), missing):
        pass


def dosed(config: ComponentsConfig, inquest: Inquest, cases: Sequence[Case]) -> None:
    """What is drawn without an edit, and with every arm at every dose, as components_doses.parquet."""
    e, n = config.edit, config.samples
    items = [
        Dose(case, arm, replace(e.choice, ratio=ratio), e.factor, n, config.pictures_seed)
        for case in cases
        for arm, ratio in [("none", e.choice.ratio), *product(ARMS, config.doses)]
    ]
    rows = list[dict[str, Any]]()
    for item, found in mapped(config, "doses", Task("concept_trak.dose:Administer", inquest), items):
        seen = ", ".join(f"{row['value']} {row['presence']:.2f}" for row in found)
        ratio = "" if item.arm == "none" else f" {item.choice.ratio:g} ({found[0]['edited']})"
        print(f"dose       {item.case.concept.name}, {item.arm}{ratio}: {seen}")
        rows += found
    name = f"components/{config.name}/components_doses.parquet"
    Store(config.store).replace(name, to_parquet(from_rows(DOSES, rows)))


AT_ONCE = 25  # ablations in an item: their states are made once


def calibrated(config: ComponentsConfig, inquest: Inquest, cases: Sequence[Case]) -> None:
    """Predicted and actual J of random ablations, as components_calibration.parquet; Pearson in words."""
    c = config.calibration
    starts = range(0, c.ablations, AT_ONCE)
    numbers = [tuple(range(first, min(first + AT_ONCE, c.ablations))) for first in starts]
    items = [Trials(case, fraction, some) for case in cases for fraction in c.fractions for some in numbers]
    found = mapped(config, "calibration", Task("concept_trak.calibration:Calibrate", inquest), items)
    rows = [row for _, some in found for row in some]
    for case in cases:
        print(*calibration.told([row for row in rows if row["concept"] == case.concept.name]), sep="\n")
    name = f"components/{config.name}/components_calibration.parquet"
    Store(config.store).replace(name, to_parquet(from_rows(calibration.CALIBRATION, rows)))


def mapped(config: ComponentsConfig, stage: str, task: Task, items: Sequence[Any]) -> list[tuple[Any, Any]]:
    """(item, result) of every item in their order; what failed is told when the others are safe."""
    if not items:
        return []
    c = config.cluster
    run = executor(AuditConfig(cluster=c, budget=config.budget))
    outcomes = list(run.map(task, items, Resources(c.cpus, c.gpus, c.memory)))
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise failure(stage, failed, len(items))
    order = {item: i for i, item in enumerate(map(str, items))}
    found = [(outcome.item, outcome.result) for outcome in outcomes]
    return sorted(found, key=lambda one: order[str(one[0])])


def told(found: Concluded, objective: str) -> str:
    """One concept in a line."""
    moved = f", moves the prediction by {found.expressed:.3f} of its size" if objective == "erase" else ""
    strongest = ", ".join(f"{name} {a:+.2e}" for name, a in found.tensors)
    return f"{found.concept:<10} J {found.j:.3e}{moved}; strongest: {strongest}"


if __name__ == "__main__":
    main(ComponentsConfig, "components", components)
