"""What `python -m jobs.components` is asked, what its workers are told, and how its work is spread over them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.query import require_conditioning, require_prompt_pairs
from concept_trak.attribution.state import Probe
from concept_trak.audit.worker import open_model
from concept_trak.components.dose_response import CRITERIA
from concept_trak.components.edit import Choice, PresenceThreshold
from concept_trak.components.measure import OBJECTIVES
from concept_trak.components.specificity import reference_objective
from concept_trak.components.workers import ComponentsSettings, MeasuredConcept, MeasureTask
from concept_trak.config import ModelConfig, WorkerSettings
from concept_trak.data.image import read_image
from concept_trak.store.store import Store


@dataclass(frozen=True)
class EditConfig:
    out: str = ""
    """The folder of the edited model, which must not exist; empty edits nothing."""
    choice: Choice = field(default_factory=Choice)
    factor: float = 0.0
    """What the chosen parameters are multiplied by, in 0 ... 1: 0 zeroes them."""
    gate: PresenceThreshold = field(default_factory=PresenceThreshold)
    """erase: what the model must show of the concept to begin with."""

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1:
            raise UserError(f"edit.factor={self.factor}; expected at least 0 and less than 1")


@dataclass(frozen=True)
class CalibrationConfig:
    fractions: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Shares of all parameters that are ablated at random."""
    ablations: int = 0
    """How many at each fraction; 0 skips the calibration. CAD's own has 1,000."""

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < f < 1 for f in self.fractions) or self.ablations < 0:
            raise UserError(f"calibration={self}; expected fractions above 0 and below 1, and ablations >= 0")


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
    """erase: what the concept's prediction differs by, that without it held (CAD's); contrast: the same, with both
    moving, as both do in an edited model; amplify: how well images of the concept are denoised."""
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
    arms: tuple[str, ...] = CRITERIA
    """alpha: what edit.choice takes; random, size: as many of every tensor, drawn or by |theta|. To choose a dose, the
    first alone will do."""
    samples: int = 8
    """Pictures per prompt and dose."""
    pictures_seed: int = 0
    """Names the noises they start from: choose a dose on some, and report it on others."""
    pictures_points: int = 51
    """Points of the DDIM grid that they are drawn on; its cost."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UserError(f"objective={self.objective!r}; expected one of: {', '.join(OBJECTIVES)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={list(self.seeds)}; expected at least one, none twice")
        if min(self.top, self.samples) < 1 or self.pictures_points < 3:
            raise UserError(
                f"top={self.top}, samples={self.samples}, pictures_points={self.pictures_points}; expected at least 1, "
                "1 and 3"
            )
        if not self.arms or not set(self.arms) <= set(CRITERIA):
            raise UserError(f"arms={list(self.arms)}; expected some of: {', '.join(CRITERIA)}")
        if self.calibration.ablations and (self.unit or self.objective == "amplify"):
            raise UserError(
                "calibration predicts J itself; set unit=false and objective=erase or contrast, or "
                "calibration.ablations=0"
            )
        require_prompt_pairs(self.concepts)
        if self.edit.out and (names := len({concept.name for concept in self.concepts})) != 1:
            raise UserError(f"edit.out edits for one concept, and {names} are asked; give one")
        if self.edit.out and (self.model.weights or self.model.lora or self.model.embeddings):
            raise UserError(
                "edit.out writes the directory at model.path, and model.weights, lora and embeddings lie beside it; "
                "save the model as one pipeline first, with fuse_lora() for a LoRA"
            )


def components_settings(config: ComponentsConfig, worker: WorkerSettings) -> ComponentsSettings:
    """What workers are told; mistakes in the store and the model are found here, before they run."""
    Store(config.store).probe()
    denoiser = open_model(config.model, worker)
    for concept in config.concepts:
        require_conditioning(denoiser, concept)
    identity = denoiser.identity()
    return ComponentsSettings(
        store=config.store,
        model=config.model,
        worker=worker,
        name=config.name,
        objective=config.objective,
        probe=config.probe,
        unit=config.unit,
        top=config.top,
        identity=identity,
    )


def measured_concepts(config: ComponentsConfig) -> list[MeasuredConcept]:
    """By concept, its units in the order of prompts and seeds: the order in which they are added."""
    against = config.edit.choice.against
    held = (
        {}
        if against == "none"
        else tasks_by_concept(config, config.references, reference_objective(against, config.objective))
    )
    tasks = tasks_by_concept(config, config.concepts, config.objective)
    return [
        MeasuredConcept(units, tuple(theirs for other, theirs in held.items() if other != name))
        for name, units in tasks.items()
    ]


def tasks_by_concept(
    config: ComponentsConfig, concepts: Sequence[Concept], objective: str
) -> dict[str, tuple[MeasureTask, ...]]:
    tasks = dict[str, tuple[MeasureTask, ...]]()
    for c in concepts:
        units = (
            MeasureTask(c, objective, seed, read_image(c.image) if c.image else b"") for seed in sorted(config.seeds)
        )
        tasks[c.name] = (*tasks.get(c.name, ()), *units)
    return tasks
