"""A model without the parameters that hold a concept: which are chosen, and the edited copy of the model directory.

    theta_i <- factor theta_i  for every chosen i        factor = 0 zeroes (CAD), in between suppresses softly

Chosen are those whose removal is predicted to move J the wanted way: for less of a concept positive alphas, for more of
it negative.

Whether a model shows a concept to begin with: where it does not, alphas predict nothing and an edit is refused.

That a prompt moves the prediction proves nothing: an untrained network moves too, and no less. So the judge that
stands beside a model looks at what it draws, where the concept's `truth` names what it knows.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from safetensors.torch import load_file, save_file
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.components.groups import GRANULARITIES, Heads, as_groups
from concept_trak.components.specificity import AGAINST, BenefitAndPrice

Masks = dict[str, Bool[Tensor, "..."]]


@dataclass(frozen=True)
class Choice:
    """How many parameters, and which are candidates."""

    by: str = "global"
    """`global`: the first of all candidates; `per_tensor`: of every tensor; `per_row`: of every row of every matrix
    (the published setting)."""
    ratio: float = 0.003
    """Share of the candidates, or of those of each tensor or row; above 0, at most 1."""
    pattern: str = ""
    """Searched in the parameter names; the published setting is `ff`."""
    granularity: str = "scalar"
    """What is chosen as a whole: scalar, row (a neuron or channel), head or tensor, each by the sum of its scalars."""
    against: str = "none"
    """How references count, a row of `specificity.py`: none, margin, surgery, surgery_by_tensor or reach."""
    towards: str = ""
    """`less` of the concept, or `more`: what holds it goes, or what hinders it. Empty: less, but more for amplify."""
    floor: float = 1.0
    """reach: added to every price, in units of the mean price, so that nothing is divided by 0."""

    def wants_more(self, objective: str) -> bool:
        return self.towards == "more" or (not self.towards and objective == "amplify")

    def __post_init__(self) -> None:
        for key, value, known in (
            ("by", self.by, ("global", "per_tensor", "per_row")),
            ("granularity", self.granularity, GRANULARITIES),
            ("against", self.against, AGAINST),
            ("towards", self.towards, ("", "less", "more")),
        ):
            if value not in known:
                raise UserError(f"edit.choice.{key}={value!r}; expected one of: {', '.join(known)}")
        if self.by == "per_row" and self.granularity != "scalar":
            raise UserError(
                f"edit.choice.by=per_row chooses single parameters; granularity={self.granularity} does not"
            )
        if not 0 < self.ratio <= 1 or self.floor <= 0:
            raise UserError(
                f"edit.choice.ratio={self.ratio}, floor={self.floor}; expected 0 < ratio <= 1 and floor above 0"
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"edit.choice.pattern={self.pattern!r} is not a regular expression: {error}") from None


def choose(benefit: BenefitAndPrice, choice: Choice, heads: Heads) -> Masks:
    """The candidates with the highest scores, of those only the positive: a mask for every tensor that has any.

    Raises:
        UserError: the pattern, the granularity or the ratio leaves nothing to choose.
    """
    scores = selection_scores(benefit, choice, heads)
    chosen = {name: mask for name, mask in _first(scores, choice).items() if mask.any()}
    if not chosen:
        raise UserError(
            f"edit.choice.ratio={choice.ratio} chooses no parameter ({_sizes(scores, choice.by)}); raise it"
        )
    shapes = {name: benefit.benefit[name].shape for name in chosen}
    return {
        n: mask.reshape(-1, 1).expand(-1, shapes[n].numel() // mask.numel()).reshape(shapes[n])
        for n, mask in chosen.items()
    }


def selection_scores(benefit: BenefitAndPrice, choice: Choice, heads: Heads) -> dict[str, Tensor]:
    """Of every candidate: [groups] by tensor, or the tensor's own shape for single parameters.

    benefit, or benefit / (price + floor mean price), the mean over all single candidates.
    """
    fit = {
        n: a
        for n, a in benefit.benefit.items()
        if re.search(choice.pattern, n)
        and (choice.by != "per_row" or a.dim() == 2)
        and (choice.granularity != "head" or n in heads)
    }
    if not fit:
        kind = {"per_row": "matrices"}.get(choice.by, "parameters" if choice.granularity != "head" else "heads")
        raise UserError(
            f"edit.choice.pattern={choice.pattern!r} matches none of the {kind}; expected a part of names such as: "
            f"{', '.join(list(benefit.benefit)[:: max(1, len(benefit.benefit) // 4)][:4])}"
        )

    def summed(x: Tensor, name: str) -> Tensor:
        return x if choice.granularity == "scalar" else as_groups(x, choice.granularity, heads.get(name)).sum(1)

    if benefit.price is None:
        return {n: summed(a, n) for n, a in fit.items()}
    total = sum(benefit.price[n].double().sum().item() for n in fit)
    least = choice.floor * total / sum(a.numel() for a in fit.values())
    if least <= 0:
        raise UserError("none of the candidates moves any reference, so that they are free: choose against=none")
    return {n: summed(a, n) / (summed(benefit.price[n], n) + least) for n, a in fit.items()}


def scaled(state: dict[str, Tensor], masks: Masks, factor: float) -> dict[str, Tensor]:
    """The tensors with the chosen scalars multiplied by the factor."""
    return {n: torch.where(masks[n], (x * factor).to(x.dtype), x) if n in masks else x for n, x in state.items()}


def write_edited_model(model: str, out: str, masks: Masks, factor: float, record: dict[str, Any]) -> None:
    """A copy of the model directory with the edit, and `edit.json` beside its weights; never over something.

    Raises:
        UserError: `out` exists, or the directory does not hold the chosen tensors.
    """
    target = Path(out)
    if target.exists():
        raise UserError(f"edit.out={out} exists; an edit overwrites nothing: delete it or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as room:
        copy = Path(room) / "model"
        shutil.copytree(model, copy)
        if missing := set(masks) - _rewritten(copy, masks, factor):
            raise UserError(f"{model} holds no safetensors with {sorted(missing)[0]!r}; save the pipeline as such")
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        whole = {**record, "factor": factor, "edited": sum(counts.values()), "by_tensor": counts}
        (copy / "edit.json").write_text(json.dumps(whole, indent=2) + "\n")
        copy.rename(target)


def _rewritten(folder: Path, masks: Masks, factor: float) -> set[str]:
    """Every chosen name that was found in the network's files."""
    seen = set[str]()
    for file in sorted(file for part in ("unet", "transformer") for file in (folder / part).glob("*.safetensors")):
        state = load_file(file)
        if here := set(masks) & set(state):
            save_file(scaled(state, masks, factor), file, metadata={"format": "pt"})
            seen |= here
    return seen


def _first(scores: dict[str, Tensor], choice: Choice) -> Masks:
    if choice.by == "global":
        return _first_of_all(scores, choice.ratio)
    if choice.by == "per_row":
        return {name: _first_of_rows(a, choice.ratio) for name, a in scores.items()}
    return {name: _first_of_all({name: a}, choice.ratio)[name] for name, a in scores.items()}


def _first_of_all(scores: dict[str, Tensor], ratio: float) -> Masks:
    flat = torch.cat([a.flatten() for a in scores.values()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(int(ratio * len(flat))).indices] = True
    parts = (mask & (flat > 0)).split([a.numel() for a in scores.values()])
    return {name: part.view(a.shape) for (name, a), part in zip(scores.items(), parts, strict=True)}


def _first_of_rows(a: Tensor, ratio: float) -> Tensor:
    """int(ratio * in_features) of every row, then only alpha > 0 (as CAD publishes it)."""
    best = a.topk(int(ratio * a.shape[1]), dim=1).indices
    return torch.zeros_like(a, dtype=torch.bool).scatter(1, best, True) & (a > 0)


def _sizes(scores: dict[str, Tensor], by: str) -> str:
    if by != "per_row":
        return f"{sum(a.numel() for a in scores.values())} candidates in {len(scores)} tensors"
    widths = sorted({a.shape[1] for a in scores.values()})
    return f"rows of {widths[0]} to {widths[-1]}, of which the whole part of the ratio is taken"


@dataclass(frozen=True)
class PresenceThreshold:
    """The least that an edit asks of the model."""

    shows: float = 0.5
    """Mean presence in pictures of the prompt, where a classifier.safetensors of jobs.train stands beside the model."""
    samples: int = 8
    """Pictures the judge looks at."""

    def __post_init__(self) -> None:
        if not 0 <= self.shows <= 1 or self.samples < 1:
            raise UserError(f"edit.gate={self}; expected shows in 0 ... 1, samples >= 1")


def require_presence(concept: Concept, gate: PresenceThreshold, shows: float | None) -> None:
    """Refuse a concept that is under the gate; what is None was not measured.

    Raises:
        UserError: saying by how much.
    """
    if shows is not None and shows < gate.shows:
        raise UserError(
            f"concept {concept.name!r} is not expressed: the judge sees it in pictures of {concept.text!r} with "
            f"{shows:.2f}, under edit.gate.shows={gate.shows:g}; choose a concept that the model draws"
        )
