"""What an edit does to what a model draws, by dose, against as many parameters chosen at random or by their size.

The judge of the data set looks at pictures of every pair from the same noises, before and after. For every value of
both factors, and for every pair, `presence` is the mean probability that it is seen where the prompt names it.

Pictures of every pair on one sheet, a strip for each pair, so that before and after can be laid side by side.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from concept_trak.attribution.query import UNGUIDED
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.components.edit import Choice, Masks
from concept_trak.components.workers import ComponentsSettings, ComponentsWorker, MeasuredConcept
from concept_trak.data.benchmarks.two_factors import TwoFactors, pair_caption
from concept_trak.data.image import png, to_png
from concept_trak.evaluation.judge import judged_set, load_judge, presence
from concept_trak.evaluation.pictures import Pictures, draw_pictures
from concept_trak.models.classifier import Classifier

CRITERIA = ("alpha", "random", "size")
DOSES = {"concept": "string", "objective": "string", "arm": "string", "ratio": "float64", "factor": "float64",
         "edited": "int64", "value": "string", "of": "string", "presence": "float64",
         "samples": "int32", "seed": "int32", "points": "int32"}  # fmt: skip


@dataclass(frozen=True)
class DoseTask(Task):
    """One edit for one concept, not written but looked at: an arm of `ARMS`, or `none`."""

    case: MeasuredConcept
    arm: str
    choice: Choice
    factor: float
    pictures: int
    """For each prompt."""
    seed: int
    """Of the noises that the pictures start from."""
    points: int = UNGUIDED.points
    """Of the DDIM grid that they are drawn on."""

    @property
    def label(self) -> str:
        return f"{self.case.concept.name}-{self.arm}"


class DoseWorker(ComponentsWorker):
    """Edits in memory, draws, judges, and restores; the rows of one dose, by value of each factor and by pair.

    What was drawn lies in the store, as a sheet (`contact.py`).
    """

    def __init__(self, inquest: ComponentsSettings) -> None:
        super().__init__(inquest)
        self.kinds = judged_set(inquest.model.path)
        self.judge = load_judge(inquest.model.path, self.kinds)

    def __call__(self, item: DoseTask, attempt: Attempt) -> list[dict[str, Any]]:
        theta = {n: p.detach() for n, p in self.denoiser.parameters.items()}
        masks = {} if item.arm == "none" else criterion_masks(item.arm, self.choose(item.case, item.choice), theta)
        with self.ablated(masks, item.factor):
            path = replace(UNGUIDED, points=item.points, every=1)
            pictures = draw_pictures(self.denoiser, self.kinds, item.pictures, seed=item.seed, path=path)
        name = contact_sheet_file(self.inquest.name, item.case.concept.name, item.arm, item.choice.ratio)
        self.store.replace(name, contact_sheet(pictures))
        facts = {"concept": item.case.concept.name, "objective": self.inquest.objective, "arm": item.arm}
        how = {"ratio": item.choice.ratio, "factor": item.factor, "samples": item.pictures}
        how |= {"seed": item.seed, "points": item.points}
        count = sum(int(mask.sum()) for mask in masks.values())
        return [{**facts, **how, "edited": count, **row} for row in presence_rows(self.judge, self.kinds, pictures)]


def criterion_masks(arm: str, chosen: Masks, theta: dict[str, Tensor]) -> Masks:
    """`alpha`: those chosen; the others take as many of every tensor: drawn by its name, or of the largest |theta|."""
    if arm == "alpha":
        return chosen
    masks = {}
    for name, mask in chosen.items():
        rank = theta[name].abs() if arm == "size" else _keyed(name, theta[name])
        best = rank.flatten().topk(int(mask.sum())).indices
        masks[name] = torch.zeros(mask.numel(), dtype=torch.bool).index_fill(0, best, True).view(mask.shape)
    return masks


def presence_rows(judge: Classifier, kinds: TwoFactors, pictures: Pictures) -> Iterator[dict[str, Any]]:
    """By value of each factor, and by pair, the mean probability that the judge sees what the prompt names of it."""
    for place, (of, values) in enumerate((("thing", kinds.things), ("colour", kinds.looks))):
        for value in values:
            seen = [presence(judge, x, **{of: value}) for pair, x in pictures.items() if pair[place] == value]
            yield {"value": value, "of": of, "presence": float(torch.cat(seen).mean())}
    for pair, x in pictures.items():
        yield {"value": pair_caption(*pair), "of": "pair", "presence": float(presence(judge, x, *pair).mean())}


def _keyed(name: str, like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    return torch.rand(like.shape, generator=draw)


def contact_sheet(pictures: Pictures) -> bytes:
    """A PNG: one row for each pair, in their order, one column for each noise."""
    return to_png(torch.cat([torch.cat(list(row), 2) for row in pictures.values()], 1))


def sheet_rows(data: bytes, count: int) -> list[bytes]:
    """The rows of a sheet of so many pairs, each a PNG."""
    with Image.open(io.BytesIO(data)) as whole:
        side = whole.height // count
        return [png(whole.crop((0, i * side, whole.width, (i + 1) * side))) for i in range(count)]


def contact_sheet_file(inquiry: str, concept: str, arm: str, ratio: float) -> str:
    """Where the sheet of a dose lies in the store; without an edit (`none`) it is that of every concept."""
    dose = arm if arm == "none" else f"{concept}-{arm}-{ratio:g}"
    return f"components/{inquiry}/pictures/{dose}.png"
