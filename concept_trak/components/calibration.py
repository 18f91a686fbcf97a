"""How far alphas predict: J after random ablations, against what first order says of them.

    predicted   - sum of alpha_i over the ablated i                     = dJ to first order
    frozen      J(theta ablated) - J(theta), eps_c- held at the whole model's: erase's alpha is its derivative
    recomputed  the same with eps_c- of the ablated model: what an edited model has; contrast's alpha is its derivative

All at the states of the whole model's own trajectories. The paper reports a Pearson of .506 over 1,000 random ablations
(Nguyen et al. 2024, figure 2); which reference it means is not said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, concat_conditions
from concept_trak.attribution.numerics import key
from concept_trak.attribution.state import State, required
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.components.edit import Masks
from concept_trak.components.measure import alpha, mean_measurement, states_of
from concept_trak.components.workers import ComponentsSettings, ComponentsWorker, MeasuredConcept

CALIBRATION = {"concept": "string", "objective": "string", "fraction": "float64", "number": "int32", "ablated": "int64",
               "predicted": "float64", "frozen": "float64", "recomputed": "float64"}  # fmt: skip


@dataclass(frozen=True)
class CalibrationTask(Task):
    """Random ablations of one fraction of all parameters, by their numbers."""

    case: MeasuredConcept
    fraction: float
    numbers: tuple[int, ...]

    @property
    def label(self) -> str:
        return self.case.concept.name


@dataclass(frozen=True)
class StateBatch:
    """All n states of one time in one batch of b = 2n: first with the concept's condition, then the same without it."""

    x_t: Float[Tensor, "b c h w"]
    t: int
    cond: Condition


BasePredictions = list[Float[Tensor, "n c h w"]]
"""eps_c- at every stand."""


class CalibrationWorker(ComponentsWorker):
    """Ablates, asks J at the same states again, and restores; a row for every ablation."""

    def __init__(self, inquest: ComponentsSettings) -> None:
        super().__init__(inquest)
        self._known: dict[str, tuple[list[StateBatch], BasePredictions]] = {}

    def __call__(self, item: CalibrationTask, attempt: Attempt) -> list[dict[str, Any]]:
        stands, held = self._stand(item.case)
        before, _, _ = self.objective(stands, held)
        alphas, rows = alpha(self.denoiser, mean_measurement(self.read(item.case.units))), list[dict[str, Any]]()
        for number in item.numbers:
            masks = ablation_masks(self.denoiser.parameters, item.fraction, number)
            with self.ablated(masks, 0.0):
                frozen, recomputed, _ = self.objective(stands, held)
            predicted = -sum(alphas[n][mask.cpu()].double().sum().item() for n, mask in masks.items())
            facts = {
                "concept": item.case.concept.name,
                "objective": self.inquest.objective,
                "fraction": item.fraction,
                "number": number,
            }
            count = sum(int(mask.sum()) for mask in masks.values())
            moved = {"predicted": predicted, "frozen": frozen - before, "recomputed": recomputed - before}
            rows.append({**facts, "ablated": count, **moved})
        return rows

    def _stand(self, case: MeasuredConcept) -> tuple[list[StateBatch], BasePredictions]:
        """The states of the whole model, and its base predictions there; made once per concept."""
        name, probe = case.concept.name, self.inquest.probe
        if name not in self._known:
            of_each = (states_of(self.denoiser, u.objective, probe, u.concept, u.seed) for u in case.units)
            batches = state_batches([state for states in of_each for state in states])
            self._known[name] = batches, self.objective(batches)[2]
        return self._known[name]

    @torch.no_grad()
    def objective(
        self, stands: Sequence[StateBatch], held: BasePredictions | None = None
    ) -> tuple[float, float, BasePredictions]:
        """The mean of J over all states with the reference `held` (None: not), with the model's own, and the latter.

        One evaluation of the network answers both.
        """
        sums, own, count = torch.zeros(2, dtype=torch.float64), BasePredictions(), 0
        for i, stand in enumerate(stands):
            with_concept, base = self.denoiser(stand.x_t, stand.t, stand.cond).eps.chunk(2)
            moved = torch.stack([with_concept - (base if held is None else held[i]), with_concept - base])
            sums += moved.double().square().flatten(2).mean(2).sum(1).cpu()
            own.append(base)
            count += len(with_concept)
        frozen, recomputed = (sums / count).tolist()
        return frozen, recomputed, own


def state_batches(states: Sequence[State]) -> list[StateBatch]:
    """States by time, in the order in which times first come."""
    at: dict[int, list[State]] = {}
    for state in states:
        at.setdefault(state.t, []).append(state)
    return [_together(t, some) for t, some in at.items()]


def _together(t: int, states: Sequence[State]) -> StateBatch:
    x_t = torch.cat([state.x_t for state in states])
    bases = [required(state.batch.without, "without", "calibration") for state in states]
    return StateBatch(
        x_t.repeat(2, 1, 1, 1), t, reduce(concat_conditions, [*(state.batch.cond for state in states), *bases])
    )


def ablation_masks(parameters: dict[str, Any], fraction: float, number: int) -> Masks:
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


def pearson_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Pearson of both, for each fraction and for all."""
    lines = []
    for fraction in [*sorted({row["fraction"] for row in rows}), None]:
        some = [row for row in rows if fraction in (None, row["fraction"])]
        predicted = [row["predicted"] for row in some]
        correlations = {what: pearson(predicted, [row[what] for row in some]) for what in ("frozen", "recomputed")}
        share = "all" if fraction is None else f"{fraction:g}"
        both = ", ".join(f"{what} {value:+.3f}" for what, value in correlations.items())
        lines.append(f"{rows[0]['concept']:<10} {share:>6} of the parameters, {len(some):>5} ablations: Pearson {both}")
    return lines
