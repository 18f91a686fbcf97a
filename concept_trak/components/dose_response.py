"""How an edit changes what a model generates, by dose, against as many parameters chosen at random or by their size.

For every pair of a two-factor data set, the model generates pictures from the same noise before and after the edit.
The data set's judge (a classifier) looks at them. `presence` is the mean probability that it sees what the prompt
names, for every value of both factors and for every pair.

A contact sheet shows the pictures of one dose, a strip for each pair, so that before and after can be compared.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from concept_trak.attribution.numerics import uniform
from concept_trak.attribution.query import UNGUIDED
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.components.choice import Choice, Masks
from concept_trak.components.workers import ComponentsSettings, ComponentsWorker, MeasuredConcept
from concept_trak.data.benchmarks.two_factors import TwoFactors, pair_caption
from concept_trak.data.image import png, to_png
from concept_trak.evaluation.judge import judged_set, load_judge, presence
from concept_trak.evaluation.pictures import Pictures, draw_pictures
from concept_trak.models.classifier import Classifier

CRITERIA = ("alpha", "random", "size")
DOSES = {"concept": "string", "objective": "string", "criterion": "string", "ratio": "float64", "factor": "float64",
         "edited": "int64", "value": "string", "of": "string", "presence": "float64",
         "samples": "int32", "seed": "int32", "points": "int32"}  # fmt: skip


@dataclass(frozen=True)
class DoseTask(Task):
    """One edit in memory, and the pictures that the model then generates.

    Attributes:
        measured: the concept whose parameters are edited.
        criterion: one of `CRITERIA`, or `none` for the model as it is.
        choice: the parameters that `alpha` takes.
        factor: what each is multiplied by.
        pictures: how many for each prompt.
        seed: of the noise that the pictures start from.
        points: of the DDIM grid that they are generated on.
    """

    measured: MeasuredConcept
    criterion: str
    choice: Choice
    factor: float
    pictures: int
    seed: int
    points: int = UNGUIDED.points

    @property
    def label(self) -> str:
        return f"{self.measured.concept.name}-{self.criterion}"


@dataclass(frozen=True)
class DoseResult:
    """What the pictures of one dose show.

    Attributes:
        edited: how many parameters were edited.
        values: every value of both factors, then every pair, as prompts name it.
        of: the factor of each value, or `pair`.
        presence: the mean probability that the judge sees each value where the prompt names it, in [0, 1].
    """

    edited: int
    values: tuple[str, ...]
    of: tuple[str, ...]
    presence: Float[np.ndarray, " values"]


class DoseWorker(ComponentsWorker):
    """Edits the model in memory, generates pictures, judges them, and restores the model.

    The pictures are written to the store as a contact sheet.
    """

    def __init__(self, settings: ComponentsSettings) -> None:
        super().__init__(settings)
        self.kinds = judged_set(settings.model.path)
        self.judge = load_judge(settings.model.path, self.kinds)

    def __call__(self, task: DoseTask, attempt: Attempt) -> DoseResult:
        masks = Masks()
        if task.criterion != "none":
            theta = {n: p.detach() for n, p in self.denoiser.parameters.items()}
            masks = criterion_masks(task.criterion, self.choose(task.measured, task.choice), theta)
        with self.ablated(masks, task.factor):
            path = replace(UNGUIDED, points=task.points, every=1)
            pictures = draw_pictures(self.denoiser, self.kinds, task.pictures, seed=task.seed, path=path)
        concept, ratio = task.measured.concept.name, task.choice.ratio
        sheet = contact_sheet_file(self.settings.name, concept, task.criterion, ratio)
        self.store.replace(sheet, contact_sheet(pictures))
        edited = sum(int(mask.sum()) for mask in masks.values())
        return DoseResult(edited, *presences(self.judge, self.kinds, pictures))


def criterion_masks(criterion: str, chosen: Masks, theta: dict[str, Tensor]) -> Masks:
    """`chosen` for `alpha`; else as many parameters of every tensor: the largest |theta|, or random ones."""
    if criterion == "alpha":
        return chosen
    masks = {}
    for name, mask in chosen.items():
        rank = theta[name].abs() if criterion == "size" else _random_rank(name, theta[name])
        best = rank.flatten().topk(int(mask.sum())).indices
        masks[name] = torch.zeros(mask.numel(), dtype=torch.bool).index_fill(0, best, True).view(mask.shape)
    return masks


def _random_rank(name: str, like: Tensor) -> Tensor:
    """Keyed by the parameter's name alone, by the hash that the measured tables were made with."""
    return uniform(tuple(like.shape), int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))


def presences(
    judge: Classifier, kinds: TwoFactors, pictures: Pictures
) -> tuple[tuple[str, ...], tuple[str, ...], Float[np.ndarray, " values"]]:
    """The values, factors and mean probabilities of a `DoseResult`."""
    rows = list[tuple[str, str, float]]()
    for position, (factor, values) in enumerate((("thing", kinds.things), ("colour", kinds.looks))):
        for value in values:
            probabilities = [
                presence(judge, x, **{factor: value}) for pair, x in pictures.items() if pair[position] == value
            ]
            rows.append((value, factor, float(torch.cat(probabilities).mean())))
    for pair, x in pictures.items():
        rows.append((pair_caption(*pair), "pair", float(presence(judge, x, *pair).mean())))
    values, of, means = zip(*rows, strict=True)
    return values, of, np.array(means)


def dose_rows(task: DoseTask, result: DoseResult) -> list[dict[str, Any]]:
    """The rows of a task in components_doses.parquet."""
    unit = task.measured.units[0]
    common = {
        "concept": unit.concept.name,
        "objective": unit.objective,
        "criterion": task.criterion,
        "ratio": task.choice.ratio,
        "factor": task.factor,
        "samples": task.pictures,
        "seed": task.seed,
        "points": task.points,
        "edited": result.edited,
    }
    rows = zip(result.values, result.of, result.presence.tolist(), strict=True)
    return [{**common, "value": value, "of": of, "presence": mean} for value, of, mean in rows]


def contact_sheet(pictures: Pictures) -> bytes:
    """A PNG with one row for each pair, in their order, and one column for each noise."""
    return to_png(torch.cat([torch.cat(list(row), 2) for row in pictures.values()], 1))


def sheet_rows(data: bytes, count: int) -> list[bytes]:
    """The rows of a contact sheet of `count` pairs, each as a PNG."""
    with Image.open(io.BytesIO(data)) as whole:
        side = whole.height // count
        return [png(whole.crop((0, i * side, whole.width, (i + 1) * side))) for i in range(count)]


def contact_sheet_file(run: str, concept: str, criterion: str, ratio: float) -> str:
    """The name of a dose's contact sheet in the store; `none` has one sheet for all concepts."""
    dose = criterion if criterion == "none" else f"{concept}-{criterion}-{ratio:g}"
    return f"components/{run}/pictures/{dose}.png"
