"""How far alphas predict: J after random ablations, against what first order says of them.

    predicted   - sum of alpha_i over the ablated i                     = dJ to first order, the reference held
    frozen      J(theta ablated) - J(theta), eps_c- held at the whole model's: what alpha is the derivative of
    recomputed  the same with eps_c- of the ablated model: what an edited model really has

All at the states of the whole model's own trajectories. The paper reports a Pearson of .506 over 1,000 random ablations
(Nguyen et al. 2024, figure 2); which reference it means is not said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from concept_trak.ablation import Masks
from concept_trak.accrual import Case, Inquest, Opened
from concept_trak.components import alpha, mean, states_of
from concept_trak.noise import key
from concept_trak.stages import Attempt
from concept_trak.state import State, required

CALIBRATION = {"concept": "string", "fraction": "float64", "number": "int32", "ablated": "int64",
               "predicted": "float64", "frozen": "float64", "recomputed": "float64"}  # fmt: skip


@dataclass(frozen=True)
class Trials:
    """Random ablations of one fraction of all parameters, by their numbers."""

    case: Case
    fraction: float
    numbers: tuple[int, ...]


class Calibrate(Opened):
    """Ablates, asks J at the same states again, and restores; a row for every ablation."""

    def __init__(self, inquest: Inquest) -> None:
        super().__init__(inquest)
        self._known: dict[str, tuple[list[State], list[Tensor]]] = {}

    def __call__(self, item: Trials, attempt: Attempt) -> list[dict[str, Any]]:
        states, bases = self._stand(item.case)
        before = self._objective(states, bases)
        alphas, rows = alpha(self.denoiser, mean(self.read(item.case.units))), list[dict[str, Any]]()
        for number in item.numbers:
            masks = drawn_masks(self.denoiser.parameters, item.fraction, number)
            with self.ablated(masks, 0.0):
                frozen = self._objective(states, bases) - before
                recomputed = self._objective(states, self._bases(states)) - before
            predicted = -sum(alphas[n][mask.cpu()].double().sum().item() for n, mask in masks.items())
            said = {"concept": item.case.concept.name, "fraction": item.fraction, "number": number}
            count = sum(int(mask.sum()) for mask in masks.values())
            measured = {"ablated": count, "predicted": predicted, "frozen": frozen, "recomputed": recomputed}
            rows.append({**said, **measured})
        return rows

    def _stand(self, case: Case) -> tuple[list[State], list[Tensor]]:
        """The states of the whole model, and its base predictions there; made once per concept."""
        name, probe = case.concept.name, self.inquest.probe
        if name not in self._known:
            of_each = (states_of(self.denoiser, u.objective, probe, u.concept, u.seed) for u in case.units)
            states = [state for states in of_each for state in states]
            self._known[name] = states, self._bases(states)
        return self._known[name]

    @torch.no_grad()
    def _bases(self, states: Sequence[State]) -> list[Tensor]:
        return [self.denoiser(s.x_t, s.t, required(s.batch.without, "without", "calibration")).eps for s in states]

    @torch.no_grad()
    def _objective(self, states: Sequence[State], bases: Sequence[Tensor]) -> float:
        """The mean of J over the states."""
        moved = (self.denoiser(s.x_t, s.t, s.batch.cond).eps - base for s, base in zip(states, bases, strict=True))
        return sum(m.double().square().mean().item() for m in moved) / len(states)


def drawn_masks(parameters: dict[str, Any], fraction: float, number: int) -> Masks:
    """Each scalar with the probability `fraction`, by the ablation's number and the parameter's name alone."""
    masks = {}
    for name, p in parameters.items():
        generator = torch.Generator().manual_seed(key(number, fraction, name, "ablation"))
        masks[name] = (torch.rand(p.shape, generator=generator) < fraction).to(p.device)
    return masks


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation, in [-1, 1]; nan where one of them does not vary."""
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = (a.norm() * b.norm()).item()
    return (a @ b).item() / size if size > 0 else math.nan


def told(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Pearson of both, for each fraction and for all."""
    lines = []
    for fraction in [*sorted({row["fraction"] for row in rows}), None]:
        some = [row for row in rows if fraction in (None, row["fraction"])]
        predicted = [row["predicted"] for row in some]
        found = {what: pearson(predicted, [row[what] for row in some]) for what in ("frozen", "recomputed")}
        share = "all" if fraction is None else f"{fraction:g}"
        both = ", ".join(f"{what} {value:+.3f}" for what, value in found.items())
        lines.append(f"{rows[0]['concept']:<10} {share:>6} of the parameters, {len(some):>5} ablations: Pearson {both}")
    return lines
