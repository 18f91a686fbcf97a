"""A comparison of the damping that `damping=auto` would choose with the default damping and with the best one.

The choice for a model is the damping with the largest within - between of the two halves of every concept's queries
(`attribution/damping.py`), among the candidates in the range of `auto`. The best damping has the largest mean over
cells, models and queries; it can only be known with labels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from concept_trak.attribution.damping import DAMPINGS, DEFAULT_DAMPING, agreement_of_halves, score_correlations
from concept_trak.evaluation.leaderboard import Ranker, RankerMeasures, collect_measures
from concept_trak.evaluation.retrieval import Cell, Values, interval_of_difference, merit


@dataclass(frozen=True)
class DampingLine:
    """One ranker over all queries. Pairs are (mean over cells, worst cell) of AP - base rate, at a damping."""

    ranker: Ranker
    chosen: tuple[float, float]
    default: tuple[float, float]
    best: tuple[float, float]
    dampings: tuple[float, ...]
    """The chosen damping of each model."""
    best_damping: float
    precision: tuple[float, float]
    """P@10 in and out of distribution at the chosen dampings, NaN without such cells."""
    gap: tuple[float, float]
    """Paired 95 % interval of the reference's mean over cells minus this ranker's, each at its chosen dampings; NaN if
    the reference has none."""


def query_separation(values: Float[np.ndarray, "n m"], concepts: int) -> float:
    """within - between of the two halves of each concept's queries: the criterion of `damping=auto`.

    Args:
        values: the scores, with the same number of columns for each concept.
        concepts: the number of concepts.

    Returns:
        A number in [-2, 2]; NaN with a single query or a single concept.
    """
    by_concept = torch.from_numpy(values).unflatten(1, (concepts, -1))
    if by_concept.shape[2] < 2 or concepts < 2:
        return float("nan")
    halves = torch.stack([by_concept[:, :, half::2].mean(2) for half in (0, 1)], 2).flatten(1)
    within, between = agreement_of_halves(score_correlations(halves))
    return within - between


def damping_lines(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell], reference: Ranker) -> list[DampingLine]:
    """The rankers whose scores have a damping, ordered by the mean at the chosen damping, the largest first.

    Args:
        rows: the grades of all models of one data set, with `separation`. A ranker without grades at the default
            damping is left out.
        cells: the cells of the data set.
        reference: the ranker that every other is compared with.
    """
    models = tuple(dict.fromkeys(row["model"] for row in rows))
    separation = {
        (row["model"], Ranker(row["method"], row["query_kind"]), row["damping"]): row["separation"]
        for row in rows
        if not row["flipped"] and DAMPINGS[0] <= row["damping"] <= DAMPINGS[-1]
    }
    measures = collect_measures(rows, models, cells)
    dampings = {
        ranker: [_chosen(separation, model, ranker) for model in models]
        for ranker in dict.fromkeys(ranker for _, ranker, _ in separation)
        if DEFAULT_DAMPING in measures[ranker]
    }
    of_reference = _gain(measures[reference], dampings[reference]) if reference in dampings else None
    lines = [_line(ranker, measures[ranker], own, cells, of_reference) for ranker, own in dampings.items()]
    return sorted(lines, key=lambda line: -line.chosen[0])


def _chosen(separation: Mapping[tuple[str, Ranker, float], float], model: str, ranker: Ranker) -> float:
    """The damping with the largest separation; the largest one if several are equal."""
    own = {damping: value for (m, r, damping), value in separation.items() if (m, r) == (model, ranker)}
    return max(own, key=lambda damping: (own[damping], damping))


def _gain(measures: Mapping[float, RankerMeasures], chosen: Sequence[float]) -> Values:
    """AP - base rate, each model's at its own damping."""
    return np.stack([measures[damping].gain[i] for i, damping in enumerate(chosen)])


def _line(
    ranker: Ranker,
    measures: Mapping[float, RankerMeasures],
    chosen: Sequence[float],
    cells: Sequence[Cell],
    of_reference: Values | None,
) -> DampingLine:
    gain = _gain(measures, chosen)
    precision = np.stack([measures[damping].precision[i] for i, damping in enumerate(chosen)])
    best = max(measures, key=lambda damping: (measures[damping].gain.mean(), damping))
    held_out = np.array([cell.held_out for cell in cells])
    inside, outside = (float(precision[..., side].mean()) if side.any() else math.nan for side in (~held_out, held_out))
    return DampingLine(
        ranker=ranker,
        chosen=(float(gain.mean()), merit(gain)),
        default=_mean_and_merit(measures[DEFAULT_DAMPING]),
        best=_mean_and_merit(measures[best]),
        dampings=tuple(chosen),
        best_damping=best,
        precision=(inside, outside),
        gap=(math.nan, math.nan) if of_reference is None else interval_of_difference(of_reference, gain, over=np.mean),
    )


def _mean_and_merit(measures: RankerMeasures) -> tuple[float, float]:
    return float(measures.gain.mean()), merit(measures.gain)
