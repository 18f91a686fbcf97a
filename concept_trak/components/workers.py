"""The distributed half of `measure.py`: a trajectory is one file, and a concept's files are added in fixed order.

`components/units/<fingerprint>.safetensors` holds what one (concept, seed) measured, named by everything that decides
it, so that it is computed once; `components/<name>/` what is read off their mean. Gradients go through the store.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.state import Probe
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import open_model
from concept_trak.components.edit import (
    Choice,
    Masks,
    PresenceThreshold,
    choose,
    require_presence,
    scaled,
    write_edited_model,
)
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
from concept_trak.evaluation.judge import concept_presence
from concept_trak.store.identity import fingerprint
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

NUMERICS = 2  # rises when the numbers of a measurement change


@dataclass(frozen=True)
class MeasureTask(Task):
    """One trajectory: a concept with one of its prompts, what is measured, and the seed of its noise.

    `image` are the bytes of a local concept's.
    """

    concept: Concept
    objective: str
    seed: int
    image: bytes = b""

    @property
    def label(self) -> str:
        return f"{self.concept.name}-{self.seed}"


@dataclass(frozen=True)
class MeasuredConcept(Task):
    """What is concluded about one concept: its units, and those of each reference (all prompts of one name)."""

    units: tuple[MeasureTask, ...]
    references: tuple[tuple[MeasureTask, ...], ...] = ()

    @property
    def concept(self) -> Concept:
        return self.units[0].concept

    @property
    def label(self) -> str:
        return self.concept.name


@dataclass(frozen=True)
class ComponentsSettings:
    """What all workers are told; `identity` is the model that the driver sees."""

    store: str
    model: ModelConfig
    worker: WorkerSettings
    name: str
    objective: str
    probe: Probe
    unit: bool
    top: int
    identity: dict[str, str]

    def file(self, item: MeasureTask) -> str:
        """Named by everything that decides the measurement."""
        c, m = item.concept, self.model
        seen = {"identity": self.identity, "parameters": m.parameters, "precision": m.precision, "numerics": NUMERICS}
        without = c.without if item.objective in ("erase", "contrast") else ""
        question = {
            "prompt": c.text,
            "without": without,
            "scope": c.scope,
            "image": item.image.hex(),
            "seed": item.seed,
        }
        unit = self.unit and item.objective != "reach"
        how = {"objective": item.objective, "probe": asdict(self.probe), "unit": unit, "negative": m.negative}
        return f"{MEASUREMENTS}/{fingerprint({**seen, **question, **how})}.safetensors"

    def table(self, kind: str, concept: Concept) -> str:
        return f"components/{self.name}/{kind}/{concept.name}.parquet"


class ComponentsWorker:
    """A worker with the model, once it is the driver's."""

    def __init__(self, inquest: ComponentsSettings) -> None:
        torch.set_num_threads(inquest.worker.threads)
        self.inquest, self.store = inquest, Store(inquest.store)
        self.denoiser = open_model(inquest.model, inquest.worker)
        self._last: tuple[tuple[MeasuredConcept, str, bool], BenefitAndPrice] | None = None
        if self.denoiser.identity() != inquest.identity:
            raise UserError(
                f"this worker sees other model files at {inquest.model.path!r} than the driver; put the same "
                "model where every node finds it"
            )

    def read(self, items: Iterable[MeasureTask]) -> Iterable[Measurement]:
        """One after the other, so that two gradients are in memory at most."""
        for name in map(self.inquest.file, items):
            yield measurement_from_bytes(self.store.read(name), f"{self.store.uri}/{name}")

    @contextmanager
    def ablated(self, masks: Masks, factor: float) -> Iterator[None]:
        """The model with an edit, in memory and for a while."""
        own = {name: self.denoiser.parameters[name] for name in masks}
        before = {name: p.detach().clone() for name, p in own.items()}
        try:
            _put(own, scaled(before, masks, factor))
            yield
        finally:
            _put(own, before)

    def worth(self, case: MeasuredConcept, choice: Choice) -> BenefitAndPrice:
        """Of every parameter: highest is what is to go. The last is kept: doses of a concept come one after another."""
        key = case, choice.against, choice.wants_more(self.inquest.objective)
        if self._last is None or self._last[0] != key:
            self._last = key, self._worth(*key)
        return self._last[1]

    def _worth(self, case: MeasuredConcept, against: str, more: bool) -> BenefitAndPrice:
        sign = -1 if more else 1
        target = {name: sign * g for name, g in mean_measurement(self.read(case.units)).gradient.items()}
        theta = {name: p.detach().cpu() for name, p in self.denoiser.parameters.items()}
        references = [] if against == "none" else [mean_measurement(self.read(units)) for units in case.references]
        return benefit_and_price(against, theta, target, references)

    def choose(self, case: MeasuredConcept, choice: Choice) -> Masks:
        return choose(self.worth(case, choice), choice, heads_of(self.denoiser.network))


class MeasureWorker(ComponentsWorker):
    """One trajectory, to the store; returns the name of its file. Nothing is measured twice."""

    def __call__(self, item: MeasureTask, attempt: Attempt) -> str:
        name, q = self.inquest.file(item), self.inquest
        if self.store.size(name) is None:
            side, pixels = self.denoiser.resolution, None
            if item.image:
                pixels = to_tensor(center_crop(decode_image(item.image), side))[None]
            states = states_of(self.denoiser, item.objective, q.probe, item.concept, item.seed, pixels)
            self.store.create(
                name, measurement_to_bytes(measure(self.denoiser, item.objective, states, q.unit, item.seed))
            )
        return name


@dataclass(frozen=True)
class SummaryResult:
    """What is said of a concept: how far it moves the prediction, J's mean, and its strongest tensors."""

    concept: str
    expressed: float
    j: float
    tensors: tuple[tuple[str, float], ...]


class SummaryWorker(ComponentsWorker):
    """A concept's units, added in the order of the case, as tables in the store."""

    def __call__(self, item: MeasuredConcept, attempt: Attempt) -> SummaryResult:
        q, concept, measurement = self.inquest, item.concept, mean_measurement(self.read(item.units))
        alphas, parameters = (
            alpha(self.denoiser, measurement),
            {n: p.detach() for n, p in self.denoiser.parameters.items()},
        )
        facts = {"concept": concept.name, "objective": q.objective}
        groups = [{**facts, **row} for row in group_rows(alphas, measurement, heads_of(self.denoiser.network))]
        tops = [{**facts, **row} for row in top_scalar_rows(parameters, alphas, measurement, q.top)]
        for kind, kinds, rows in (("components_groups", GROUPS, groups), ("components_top", TOP, tops)):
            self.store.replace(q.table(kind, concept), to_parquet(from_rows(kinds, rows)))
        tensors = [(row["tensor"], row["alpha"]) for row in groups if row["granularity"] == "tensor"]
        first = tuple(sorted(tensors, key=lambda tensor: -abs(tensor[1]))[:3])
        return SummaryResult(concept.name, expressed(measurement), measurement.strength[:, 0].mean().item(), first)


class EditWorker(ComponentsWorker):
    """The edited copy of the model directory; runs where it is to lie."""

    def __call__(self, case: MeasuredConcept, choice: Choice, factor: float, out: str, gate: PresenceThreshold) -> int:
        """How many parameters were changed; refused by `gate.require` where alphas predict nothing."""
        q, concept, model = self.inquest, case.concept, self.inquest.model.path
        shows = (
            concept_presence(self.denoiser, model, concept, gate.samples)
            if not choice.wants_more(q.objective)
            else None
        )
        require_presence(concept, gate, shows)
        masks = self.choose(case, choice)
        record: dict[str, Any] = {"model": q.identity, "objective": q.objective, "concept": asdict(concept)}
        prompts = {"asked": _told(case.units), "references": [_told(units) for units in case.references]}
        how = {"choice": asdict(choice), "unit": q.unit, "probe": asdict(q.probe), "gate": asdict(gate), "shows": shows}
        write_edited_model(model, out, masks, factor, {**record, **prompts, **how})
        return sum(int(mask.sum()) for mask in masks.values())


@torch.no_grad()
def _put(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def _told(units: tuple[MeasureTask, ...]) -> list[dict[str, Any]]:
    return [
        {"name": u.concept.name, "prompt": u.concept.text, "without": u.concept.without, "seed": u.seed} for u in units
    ]
