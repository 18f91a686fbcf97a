"""The configuration of a components run, and the settings and tasks of its workers that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.query import require_conditioning, require_prompt_pairs
from concept_trak.attribution.state import Probe
from concept_trak.audit.resolve import require_apart
from concept_trak.audit.worker import open_model
from concept_trak.components.choice import Choice
from concept_trak.components.dose_response import CRITERIA
from concept_trak.components.edit import PresenceThreshold
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
    presence: PresenceThreshold = field(default_factory=PresenceThreshold)
    """How much of the concept the model must show before an edit for less of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1:
            raise UserError(f"edit.factor={self.factor}; expected at least 0 and less than 1")


@dataclass(frozen=True)
class CalibrationConfig:
    fractions: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Shares of all parameters that are ablated at random."""
    ablations: int = 0
    """How many at each fraction; 0 skips the calibration. CAD's has 1,000."""

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < f < 1 for f in self.fractions) or self.ablations < 0:
            raise UserError(f"calibration={self}; expected fractions above 0 and below 1, and ablations >= 0")


@dataclass(frozen=True)
class ComponentsConfig:
    store: str = "results"
    name: str = "demo"
    """The tables are written to components/<name>/."""
    model: ModelConfig = field(default_factory=ModelConfig)
    concepts: tuple[Concept, ...] = ()
    """As in an audit. Concepts of one name are one concept with several prompts. `samples` is not used; `truth` names
    what the judge of edit.presence looks for."""
    references: tuple[Concept, ...] = ()
    """Concepts that an edit should preserve (edit.choice.against). A concept is not a reference of its own name."""
    objective: str = "erase"
    """erase: how far the concept moves the prediction, with the prediction without it held fixed (as CAD does);
    contrast: the same where both predictions change, as in an edited model; amplify: how well images of the concept
    are denoised."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Each gives one trajectory of every prompt."""
    probe: Probe = field(default_factory=lambda: Probe("sampling", "concept_reward"))
    """erase: points, every, guidance and eta of the sampling; amplify: times of the noise."""
    unit: bool = False
    """Whether the gradient of each state is divided by its norm."""
    top: int = 100
    """How many of the largest positive and negative single parameters are listed."""
    edit: EditConfig = field(default_factory=EditConfig)
    doses: tuple[float, ...] = ()
    """Ratios at which edit.choice is tried in memory, with pictures of the result (models of jobs.train only)."""
    criteria: tuple[str, ...] = CRITERIA
    """alpha: the parameters that edit.choice takes; random, size: as many of every tensor, at random or by |theta|. To
    find a dose, alpha is enough."""
    samples: int = 8
    """Pictures for each prompt and dose."""
    pictures_seed: int = 0
    """Of the noise that pictures start from: find a dose with one seed, and report it with another."""
    pictures_points: int = 51
    """Points of the DDIM grid that pictures are generated on; their cost is proportional to it."""
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
        if not self.criteria or not set(self.criteria) <= set(CRITERIA):
            raise UserError(f"criteria={list(self.criteria)}; expected some of: {', '.join(CRITERIA)}")
        if self.calibration.ablations and (self.unit or self.objective == "amplify"):
            raise UserError(
                "calibration predicts J itself; set unit=false and objective=erase or contrast, or "
                "calibration.ablations=0"
            )
        require_prompt_pairs(self.concepts)
        if self.edit.out and (names := len({concept.name for concept in self.concepts})) != 1:
            raise UserError(f"edit.out edits for one concept, and there are {names}; give one")
        if self.edit.out and (self.model.weights or self.model.lora or self.model.embeddings):
            raise UserError(
                "edit.out copies the directory at model.path, without model.weights, lora and embeddings; "
                "save the model as one pipeline first, with fuse_lora() for a LoRA"
            )


def components_settings(config: ComponentsConfig, worker: WorkerSettings) -> ComponentsSettings:
    """The settings of the workers, after checks of the store, the model and the concepts."""
    require_apart(config.store, config.model)
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
    """Every concept with its references. Trajectories are in the order in which they are added: prompts, then seeds."""
    against, references = config.edit.choice.against, dict[str, tuple[MeasureTask, ...]]()
    if against != "none":
        references = tasks_by_concept(config, config.references, reference_objective(against, config.objective))
    return [
        MeasuredConcept(tasks, tuple(others for other, others in references.items() if other != name))
        for name, tasks in tasks_by_concept(config, config.concepts, config.objective).items()
    ]


def tasks_by_concept(
    config: ComponentsConfig, concepts: Sequence[Concept], objective: str
) -> dict[str, tuple[MeasureTask, ...]]:
    """The trajectories of concepts, by name."""
    tasks = dict[str, tuple[MeasureTask, ...]]()
    for concept in concepts:
        image = read_image(concept.image) if concept.image else b""
        own = (MeasureTask(concept, objective, seed, image) for seed in sorted(config.seeds))
        tasks[concept.name] = (*tasks.get(concept.name, ()), *own)
    return tasks
