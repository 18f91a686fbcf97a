"""How well alphas predict: the change of J by random ablations, against its first-order prediction.

    predicted   - sum of alpha_i over the ablated i                     = dJ to first order
    frozen      J(theta ablated) - J(theta), with the whole model's eps_c-: the alpha of erase is its derivative
    recomputed  the same with eps_c- of the ablated model, as in an edit: the alpha of contrast is its derivative

All are at the states of the whole model's own trajectories. The paper reports a Pearson correlation of .506 over 1,000
random ablations (Nguyen et al. 2024, figure 2) and does not specify the reference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, concat_conditions
from concept_trak.attribution.numerics import key, uniform
from concept_trak.attribution.state import State, required
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.components.choice import Masks
from concept_trak.components.measure import alpha, mean_measurement, states_of
from concept_trak.components.workers import ComponentsSettings, ComponentsWorker, MeasuredConcept

CALIBRATION = {"concept": "string", "objective": "string", "fraction": "float64", "number": "int32", "ablated": "int64",
               "predicted": "float64", "frozen": "float64", "recomputed": "float64"}  # fmt: skip


@dataclass(frozen=True)
class CalibrationTask(Task):
    """Random ablations of one concept's model, each of one fraction of all parameters.

    Attributes:
        fraction: the probability that a parameter is ablated, in (0, 1).
        numbers: each names one ablation.
    """

    measured: MeasuredConcept
    fraction: float
    numbers: range

    @property
    def label(self) -> str:
        return self.measured.concept.name


@dataclass(frozen=True)
class CalibrationResult:
    """For each ablation of a task: how many parameters it zeroes, and the predicted and actual changes of J."""

    ablated: Int64[np.ndarray, " n"]
    predicted: Float[np.ndarray, " n"]
    frozen: Float[np.ndarray, " n"]
    recomputed: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class StateBatch:
    """All n states of one time in one batch of b = 2n: first with the concept's condition, then the same without it."""

    x_t: Float[Tensor, "b c *space"]
    t: int
    cond: Condition


BasePredictions = list[Float[Tensor, "n c *space"]]
"""eps_c- of every `StateBatch`."""


class CalibrationWorker(ComponentsWorker):
    """Computes J at the states of the whole model's trajectories, with and without each ablation."""

    def __init__(self, settings: ComponentsSettings) -> None:
        super().__init__(settings)
        self._known: dict[str, tuple[list[StateBatch], BasePredictions]] = {}

    def __call__(self, task: CalibrationTask, attempt: Attempt) -> CalibrationResult:
        batches, reference = self._states(task.measured)
        before, _, _ = self.objective(batches, reference)
        alphas = alpha(self.denoiser, mean_measurement(self.read(task.measured.units)))
        counts, changes = list[int](), list[tuple[float, float, float]]()
        for number in task.numbers:
            masks = ablation_masks(self.denoiser.parameters, task.fraction, number)
            with self.ablated(masks, 0.0):
                frozen, recomputed, _ = self.objective(batches, reference)
            predicted = -sum(alphas[n][mask.cpu()].double().sum().item() for n, mask in masks.items())
            counts.append(sum(int(mask.sum()) for mask in masks.values()))
            changes.append((predicted, frozen - before, recomputed - before))
        predicted, frozen, recomputed = np.array(changes).T
        return CalibrationResult(np.array(counts), predicted, frozen, recomputed)

    def _states(self, measured: MeasuredConcept) -> tuple[list[StateBatch], BasePredictions]:
        """The states of the whole model, and its base predictions there; computed once per concept."""
        name, probe = measured.concept.name, self.settings.probe
        if name not in self._known:
            paths = (states_of(self.denoiser, u.objective, probe, u.concept, u.seed) for u in measured.units)
            batches = state_batches([state for path in paths for state in path])
            self._known[name] = batches, self.objective(batches)[2]
        return self._known[name]

    @torch.no_grad()
    def objective(
        self, batches: Sequence[StateBatch], reference: BasePredictions | None = None
    ) -> tuple[float, float, BasePredictions]:
        """The mean of J over all states, with both references from one evaluation of the network.

        Args:
            reference: eps_c- of every batch to hold; None for the model's own.

        Returns:
            (J with the reference held, J with the model's own reference, the model's own reference).
        """
        sums, own, count = torch.zeros(2, dtype=torch.float64), BasePredictions(), 0
        for i, batch in enumerate(batches):
            with_concept, base = self.denoiser(batch.x_t, batch.t, batch.cond).eps.chunk(2)
            moved = torch.stack([with_concept - (base if reference is None else reference[i]), with_concept - base])
            sums += moved.double().square().flatten(2).mean(2).sum(1).cpu()
            own.append(base)
            count += len(with_concept)
        frozen, recomputed = (sums / count).tolist()
        return frozen, recomputed, own


def state_batches(states: Sequence[State]) -> list[StateBatch]:
    """States grouped by time, in the order in which the times first occur."""
    at: dict[int, list[State]] = {}
    for state in states:
        at.setdefault(state.t, []).append(state)
    return [_together(t, group) for t, group in at.items()]


def _together(t: int, states: Sequence[State]) -> StateBatch:
    x_t = torch.cat([state.x_t for state in states])
    bases = [required(state.batch.without, "without", "calibration") for state in states]
    return StateBatch(
        torch.cat([x_t, x_t]), t, reduce(concat_conditions, [*(state.batch.cond for state in states), *bases])
    )


def ablation_masks(parameters: Mapping[str, Tensor], fraction: float, number: int) -> Masks:
    """Each scalar with the probability `fraction`, keyed by the ablation's number and the parameter's name alone."""
    seeds = {name: key(number, fraction, name, "ablation") for name in parameters}
    return {name: (uniform(tuple(p.shape), seeds[name]) < fraction).to(p.device) for name, p in parameters.items()}


def calibration_rows(task: CalibrationTask, result: CalibrationResult) -> list[dict[str, Any]]:
    """The rows of a task in components_calibration.parquet."""
    columns = {name: getattr(result, name).tolist() for name in ("ablated", "predicted", "frozen", "recomputed")}
    unit = task.measured.units[0]
    common = {"concept": unit.concept.name, "objective": unit.objective, "fraction": task.fraction}
    return [
        {**common, "number": number, **dict(zip(columns, values, strict=True))}
        for number, *values in zip(task.numbers, *columns.values(), strict=True)
    ]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Correlation, in [-1, 1]; nan where one of them does not vary."""
    varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if varies else math.nan


def pearson_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each fraction and one for all: the correlation of predicted and actual change."""
    lines = []
    for fraction in [*sorted({row["fraction"] for row in rows}), None]:
        group = [row for row in rows if fraction in (None, row["fraction"])]
        predicted = [row["predicted"] for row in group]
        correlations = {what: pearson(predicted, [row[what] for row in group]) for what in ("frozen", "recomputed")}
        share = "all" if fraction is None else f"{fraction:g}"
        both = ", ".join(f"{what} {value:+.3f}" for what, value in correlations.items())
        lines.append(
            f"{rows[0]['concept']:<10} {share:>6} of the parameters, {len(group):>5} ablations: Pearson {both}"
        )
    return lines
