"""Which parameters an edit changes, of those whose removal is predicted to move J the wanted way.

An edit for less of a concept chooses parameters with positive alphas, one for more of it parameters with negative ones.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from concept_trak import UserError
from concept_trak.components.groups import GRANULARITIES, Heads, as_groups
from concept_trak.components.specificity import AGAINST, BenefitAndPrice

Masks = dict[str, Bool[Tensor, "..."]]
"""The chosen scalars of every tensor that has any, by parameter name."""


@dataclass(frozen=True)
class Choice:
    """How many parameters, and which are candidates."""

    by: str = "global"
    """`global`: the best of all candidates; `per_tensor`: the best of every tensor; `per_row`: the best of every row of
    every matrix (the published setting)."""
    ratio: float = 0.003
    """Share of the candidates (of each tensor or row), in (0, 1]."""
    pattern: str = ""
    """A regular expression that is searched in the parameter names; the published setting is `ff`."""
    granularity: str = "scalar"
    """What is chosen as a unit: scalar, row (a neuron or channel), head or tensor, each by the sum of its scalars."""
    against: str = "none"
    """How references count, a row of `specificity.py`: none, margin, surgery, surgery_by_tensor or reach."""
    towards: str = ""
    """`less` of the concept edits what holds it, `more` edits what hinders it. Empty: less, but more for amplify."""
    floor: float = 1.0
    """reach: added to every price, in units of the mean price, so that no price is 0."""

    def wants_more(self, objective: str) -> bool:
        return self.towards == "more" or (not self.towards and objective == "amplify")

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("by", self.by, ("global", "per_tensor", "per_row")),
            ("granularity", self.granularity, GRANULARITIES),
            ("against", self.against, AGAINST),
            ("towards", self.towards, ("", "less", "more")),
        ):
            if value not in choices:
                raise UserError(f"edit.choice.{key}={value!r}; expected one of: {', '.join(choices)}")
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
    """The candidates with the highest scores, if positive: a mask for every tensor that has any.

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
    """benefit, or benefit / (price + floor * mean price), of every candidate by tensor.

    Returns:
        [groups] for each tensor, or the tensor's shape for single parameters. The mean price is over all single
        candidates.
    """
    candidates = {
        n: a
        for n, a in benefit.benefit.items()
        if re.search(choice.pattern, n)
        and (choice.by != "per_row" or a.dim() == 2)
        and (choice.granularity != "head" or n in heads)
    }
    if not candidates:
        kind = {"per_row": "matrices"}.get(choice.by, "parameters" if choice.granularity != "head" else "heads")
        raise UserError(
            f"edit.choice.pattern={choice.pattern!r} matches none of the {kind}; expected a part of names such as: "
            f"{', '.join(list(benefit.benefit)[:: max(1, len(benefit.benefit) // 4)][:4])}"
        )

    def summed(x: Tensor, name: str) -> Tensor:
        return x if choice.granularity == "scalar" else as_groups(x, choice.granularity, heads.get(name)).sum(1)

    if benefit.price is None:
        return {n: summed(a, n) for n, a in candidates.items()}
    total = sum(benefit.price[n].double().sum().item() for n in candidates)
    least = choice.floor * total / sum(a.numel() for a in candidates.values())
    if least <= 0:
        raise UserError("no candidate moves any reference, so all are free; set edit.choice.against=none")
    return {n: summed(a, n) / (summed(benefit.price[n], n) + least) for n, a in candidates.items()}


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
    """The int(ratio * in_features) largest of every row, of these only alpha > 0 (as CAD publishes it)."""
    best = a.topk(int(ratio * a.shape[1]), dim=1).indices
    return torch.zeros_like(a, dtype=torch.bool).scatter(1, best, True) & (a > 0)


def _sizes(scores: dict[str, Tensor], by: str) -> str:
    if by != "per_row":
        return f"{sum(a.numel() for a in scores.values())} candidates in {len(scores)} tensors"
    widths = sorted({a.shape[1] for a in scores.values()})
    return f"rows of {widths[0]} to {widths[-1]}; the number taken of each is rounded down"
