"""The distributed half of `components.py`: a trajectory is one file, and a concept's files are added in fixed order.

`components/units/<fingerprint>.safetensors` holds what one (concept, seed) measured, named by everything that decides
it, so that it is computed once; `components/<name>/` what is read off their mean. Gradients go through the store.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from concept_trak.ablation import Choice, choose, write
from concept_trak.components import (
    Measurement,
    alpha,
    decode,
    encode,
    expressed,
    group_rows,
    mean,
    measure,
    states_of,
    top_rows,
)
from concept_trak.concept import Concept
from concept_trak.config import AuditConfig
from concept_trak.data.image import decode as decode_image
from concept_trak.data.image import fit, to_tensor
from concept_trak.gate import Gate, require, shown
from concept_trak.probe import Probe
from concept_trak.stages import Attempt, open_model
from concept_trak.store.commit import Store
from concept_trak.store.identity import fingerprint
from concept_trak.store.tables import from_rows, to_parquet

NUMERICS = 1  # rises when the numbers of a measurement change
GROUPS = {"concept": "string", "objective": "string", "granularity": "string", "tensor": "string", "row": "int32",
          "parameters": "int64", "alpha": "float64", "alpha_positive": "float64", "alpha_negative": "float64",
          "se_seeds": "float64", "se_states": "float64", "z": "float64", "seeds": "int32",
          "states": "int32"}  # fmt: skip
TOP = {"concept": "string", "objective": "string", "end": "string", "rank": "int32", "tensor": "string",
       "row": "int32", "column": "int32", "theta": "float64", "gradient": "float64", "alpha": "float64"}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """One trajectory: a concept, and the seed of its noise; `image` are the bytes of a local concept's."""

    concept: Concept
    seed: int
    image: bytes = b""


@dataclass(frozen=True)
class Inquest:
    """What all workers are told; `identity` is the model that the driver sees."""

    config: AuditConfig
    name: str
    objective: str
    probe: Probe
    unit: bool
    top: int
    identity: dict[str, str]

    def file(self, item: Unit) -> str:
        """Named by everything that decides the measurement."""
        c, m = item.concept, self.config.model
        seen = {"identity": self.identity, "parameters": m.parameters, "precision": m.precision, "numerics": NUMERICS}
        asked = {"prompt": c.text, "without": c.without, "scope": c.scope, "image": item.image.hex(), "seed": item.seed}
        how = {"objective": self.objective, "probe": asdict(self.probe), "unit": self.unit, "negative": m.negative}
        return f"components/units/{fingerprint({**seen, **asked, **how})}.safetensors"

    def table(self, kind: str, concept: Concept) -> str:
        return f"components/{self.name}/{kind}/{concept.name}.parquet"


class Opened:
    """A worker with the model, once it is the driver's."""

    def __init__(self, inquest: Inquest) -> None:
        torch.set_num_threads(max(1, int(inquest.config.cluster.cpus)))
        self.inquest, self.store = inquest, Store(inquest.config.store)
        self.denoiser = open_model(inquest.config)
        if self.denoiser.identity() != inquest.identity:
            raise ValueError(
                f"this worker sees other model files at {inquest.config.model.path!r} than the driver; put the same "
                "model where every node finds it"
            )

    def read(self, items: Iterable[Unit]) -> Iterable[Measurement]:
        """One after the other, so that two gradients are in memory at most."""
        for name in map(self.inquest.file, items):
            yield decode(self.store.read(name), f"{self.store.uri}/{name}")


class Measure(Opened):
    """One trajectory, to the store; returns the name of its file. Nothing is measured twice."""

    def __call__(self, item: Unit, attempt: Attempt) -> str:
        name, q = self.inquest.file(item), self.inquest
        if self.store.size(name) is None:
            side, pixels = self.denoiser.resolution, None
            if item.image:
                pixels = to_tensor(fit(decode_image(item.image), side))[None]
            states = states_of(self.denoiser, q.objective, q.probe, item.concept, item.seed, pixels)
            self.store.create(name, encode(measure(self.denoiser, q.objective, states, q.unit)))
        return name


@dataclass(frozen=True)
class Concluded:
    """What is said of a concept: how far it moves the prediction, J's mean, and its strongest tensors."""

    concept: str
    expressed: float
    j: float
    tensors: tuple[tuple[str, float], ...]


class Conclude(Opened):
    """A concept's units, added in the order of their seeds, as tables in the store."""

    def __call__(self, items: tuple[Unit, ...], attempt: Attempt) -> Concluded:
        q, concept, found = self.inquest, items[0].concept, mean(self.read(items))
        alphas, parameters = alpha(self.denoiser, found), {n: p.detach() for n, p in self.denoiser.parameters.items()}
        said = {"concept": concept.name, "objective": q.objective}
        groups = [{**said, **row} for row in group_rows(alphas, found, len(items))]
        tops = [{**said, **row} for row in top_rows(parameters, alphas, found, q.top)]
        for kind, kinds, rows in (("components_groups", GROUPS, groups), ("components_top", TOP, tops)):
            self.store.replace(q.table(kind, concept), to_parquet(from_rows(kinds, rows)))
        tensors = [(row["tensor"], row["alpha"]) for row in groups if row["granularity"] == "tensor"]
        first = tuple(sorted(tensors, key=lambda one: -abs(one[1]))[:3])
        return Concluded(concept.name, expressed(found), found.strength[:, 0].mean().item(), first)


class Edit(Opened):
    """The edited copy of the model directory; runs where it is to lie."""

    def __call__(self, items: tuple[Unit, ...], choice: Choice, factor: float, out: str, gate: Gate) -> int:
        """How many parameters were changed.

        Raises:
            ValueError: the concept is not expressed, so that alphas predict nothing.
        """
        q, concept, found = self.inquest, items[0].concept, mean(self.read(items))
        moves = expressed(found) if q.objective == "erase" else None
        shows = shown(self.denoiser, q.config.model.path, concept, gate.samples) if q.objective == "erase" else None
        require(concept, gate, moves, shows)
        masks = choose(wanted(q.objective, alpha(self.denoiser, found)), choice)
        record: dict[str, Any] = {"model": q.identity, "objective": q.objective, "concept": asdict(concept)}
        how = {"seeds": [i.seed for i in items], "choice": asdict(choice), "unit": q.unit, "probe": asdict(q.probe)}
        measured = {"gate": asdict(gate), "moves": moves, "shows": shows}
        write(q.config.model.path, out, masks, factor, {**record, **how, **measured})
        return sum(int(mask.sum()) for mask in masks.values())


def wanted(objective: str, alphas: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores whose highest are to go: erase lowers its J, amplify raises its."""
    sign = {"erase": 1, "amplify": -1}[objective]
    return {name: sign * a for name, a in alphas.items()}
