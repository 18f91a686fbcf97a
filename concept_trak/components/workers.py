"""The workers of a components run: measure a trajectory, summarize a concept.

`components/units/<fingerprint>.safetensors` holds the measurement of one trajectory: one concept with one seed. The
fingerprint covers everything that decides its numbers, so each trajectory is measured once. The measurements of a
concept are added in a fixed order, and the tables of their mean are in `components/<name>/`. Gradients go from worker
to worker through the store.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.state import Probe
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import open_model
from concept_trak.components.choice import Choice, Masks, choose
from concept_trak.components.groups import GROUPS, TOP, group_rows, heads_of, top_scalar_rows
from concept_trak.components.measure import (
    Measurement,
    alpha,
    expressed,
    mean_measurement,
    measure,
    measurement_from_bytes,
    measurement_to_bytes,
    states_of,
)
from concept_trak.components.specificity import BenefitAndPrice, benefit_and_price
from concept_trak.components.units import MEASUREMENTS
from concept_trak.config import ModelConfig, WorkerSettings
from concept_trak.data.decode import decode_image
from concept_trak.data.image import center_crop, to_tensor
from concept_trak.store.identity import fingerprint
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

NUMERICS = 2  # rises when the numbers of a measurement change
STRONGEST = 3  # tensors that a summary names


@dataclass(frozen=True)
class MeasureTask(Task):
    """One trajectory: a concept with one of its prompts, the objective, and the seed of the noise.

    `image`: the bytes of the image of a concept with `scope=local`.
    """

    concept: Concept
    objective: str
    seed: int
    image: bytes = b""

    @property
    def label(self) -> str:
        return f"{self.concept.name}-{self.seed}"


@dataclass(frozen=True)
class MeasureResult:
    """The name of the measurement's file in the store."""

    file: str


@dataclass(frozen=True)
class MeasuredConcept:
    """The trajectories of one concept (all prompts of one name, all seeds), and those of each of its references."""

    units: tuple[MeasureTask, ...]
    references: tuple[tuple[MeasureTask, ...], ...] = ()

    @property
    def concept(self) -> Concept:
        """The concept with the first of its prompts."""
        return self.units[0].concept


@dataclass(frozen=True)
class SummaryTask(Task):
    """A concept whose measurements are all in the store."""

    measured: MeasuredConcept

    @property
    def label(self) -> str:
        return self.measured.concept.name


@dataclass(frozen=True)
class SummaryResult:
    """One concept in numbers.

    Attributes:
        concept: its name.
        expressed: how far it moves the prediction, |eps_c - eps_c-| / |eps_c|.
        j: the mean of J.
        tensors: the names of the tensors with the largest |alpha|, the largest first.
        alphas: their alphas, float64.
    """

    concept: str
    expressed: float
    j: float
    tensors: tuple[str, ...]
    alphas: Float[np.ndarray, " tensors"]


@dataclass(frozen=True)
class ComponentsSettings:
    """What every worker of a components run is built with. `identity`: of the model as the driver opened it."""

    store: str
    model: ModelConfig
    worker: WorkerSettings
    name: str
    objective: str
    probe: Probe
    unit: bool
    top: int
    identity: dict[str, str]

    def file(self, task: MeasureTask) -> str:
        """The measurement's file, named by the fingerprint of everything that decides its numbers."""
        c, m = task.concept, self.model
        return (
            f"{MEASUREMENTS}/"
            + fingerprint(
                {
                    "identity": self.identity,
                    "parameters": m.parameters,
                    "precision": m.precision,
                    "numerics": NUMERICS,
                    "prompt": c.text,
                    "without": c.without if task.objective in ("erase", "contrast") else "",
                    "scope": c.scope,
                    "image": task.image.hex(),
                    "seed": task.seed,
                    "objective": task.objective,
                    "probe": asdict(self.probe),
                    "unit": self.unit and task.objective != "reach",
                    "negative": m.negative,
                    **({"resolution": m.resolution} if m.resolution else {}),
                }
            )
            + ".safetensors"
        )

    def table(self, kind: str, concept: Concept) -> str:
        """The name of a table of one concept in the store."""
        return f"components/{self.name}/{kind}/{concept.name}.parquet"


class ComponentsWorker:
    """A worker that holds the model, once it agrees with the driver about what the model is."""

    def __init__(self, settings: ComponentsSettings) -> None:
        torch.set_num_threads(settings.worker.threads)
        self.settings, self.store = settings, Store(settings.store)
        self.denoiser = open_model(settings.model, settings.worker)
        self._kept: tuple[tuple[MeasuredConcept, str, bool], BenefitAndPrice] | None = None
        if self.denoiser.identity() != settings.identity:
            raise UserError(
                f"this worker sees other model files at {settings.model.path!r} than the driver; put the same "
                "model where every node finds it"
            )

    def read(self, units: Iterable[MeasureTask]) -> Iterable[Measurement]:
        """The measurements one after the other, so that at most two gradients are in memory."""
        for name in map(self.settings.file, units):
            yield measurement_from_bytes(self.store.read(name), f"{self.store.uri}/{name}")

    @contextmanager
    def ablated(self, masks: Masks, factor: float) -> Iterator[None]:
        """The model with an edit in memory, until the block ends."""
        own = {name: self.denoiser.parameters[name] for name in masks}
        before = {name: p.detach().clone() for name, p in own.items()}
        try:
            _set_parameters(own, scaled(before, masks, factor))
            yield
        finally:
            _set_parameters(own, before)

    def choose(self, measured: MeasuredConcept, choice: Choice) -> Masks:
        """The parameters that a choice takes for a concept."""
        return choose(self._benefit_and_price(measured, choice), choice, heads_of(self.denoiser.network))

    def _benefit_and_price(self, measured: MeasuredConcept, choice: Choice) -> BenefitAndPrice:
        """Of every parameter. The latest is kept, because the doses of a concept follow one another."""
        key = measured, choice.against, choice.wants_more(self.settings.objective)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._compute_benefit_and_price(*key)
        return self._kept[1]

    def _compute_benefit_and_price(self, measured: MeasuredConcept, against: str, more: bool) -> BenefitAndPrice:
        sign = -1 if more else 1
        target = {name: sign * g for name, g in mean_measurement(self.read(measured.units)).gradient.items()}
        theta = {name: p.detach().cpu() for name, p in self.denoiser.parameters.items()}
        references = [] if against == "none" else [mean_measurement(self.read(units)) for units in measured.references]
        return benefit_and_price(against, theta, target, references)


class MeasureWorker(ComponentsWorker):
    """Measures one trajectory and writes it to the store, unless it is there."""

    def __call__(self, task: MeasureTask, attempt: Attempt) -> MeasureResult:
        name, settings = self.settings.file(task), self.settings
        if self.store.size(name) is None:
            pixels = None
            if task.image:
                pixels = to_tensor(center_crop(decode_image(task.image), self.denoiser.resolution))[None]
            states = states_of(self.denoiser, task.objective, settings.probe, task.concept, task.seed, pixels)
            measurement = measure(self.denoiser, task.objective, states, settings.unit, task.seed)
            self.store.create(name, measurement_to_bytes(measurement))
        return MeasureResult(name)


class SummaryWorker(ComponentsWorker):
    """Adds the measurements of a concept and writes its tables to the store."""

    def __call__(self, task: SummaryTask, attempt: Attempt) -> SummaryResult:
        concept, measurement = task.measured.concept, mean_measurement(self.read(task.measured.units))
        alphas = alpha(self.denoiser, measurement)
        parameters = {name: p.detach() for name, p in self.denoiser.parameters.items()}
        groups = list(group_rows(alphas, measurement, heads_of(self.denoiser.network)))
        self._write("components_groups", GROUPS, concept, groups)
        self._write("components_top", TOP, concept, top_scalar_rows(parameters, alphas, measurement, self.settings.top))
        tensors = {row["tensor"]: row["alpha"] for row in groups if row["granularity"] == "tensor"}
        strongest = sorted(tensors, key=lambda name: -abs(tensors[name]))[:STRONGEST]
        return SummaryResult(
            concept=concept.name,
            expressed=expressed(measurement),
            j=measurement.strength[:, 0].mean().item(),
            tensors=tuple(strongest),
            alphas=np.array([tensors[name] for name in strongest]),
        )

    def _write(self, kind: str, columns: dict[str, str], concept: Concept, rows: Iterable[dict[str, Any]]) -> None:
        common = {"concept": concept.name, "objective": self.settings.objective}
        table = from_rows(columns, [{**common, **row} for row in rows])
        self.store.replace(self.settings.table(kind, concept), to_parquet(table))


def scaled(state: dict[str, Tensor], masks: Masks, factor: float) -> dict[str, Tensor]:
    """The tensors with the chosen scalars multiplied by the factor."""
    return {n: torch.where(masks[n], (x * factor).to(x.dtype), x) if n in masks else x for n, x in state.items()}


@torch.no_grad()
def _set_parameters(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
