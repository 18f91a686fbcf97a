"""Builds a leaderboard from the grades of many rankings.

A ranker is a method with one kind of query and one sign. Its damping is the one with the largest merit over the even
queries. All its numbers come from the odd queries, so that no query is used both for the choice and for the result.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from concept_trak.evaluation.retrieval import Cell, Values, interval_of_difference, merit

BASELINES = ("trak", "d_trak", "das", "pixels", "activation", "style")
"""The recommended row must have a larger merit than all of these, with either kind of query."""

BY_CAPTION = ("gain_named", "gain_unnamed")
"""Columns of grades: AP - base rate among the carriers whose caption names the concept, and among the others."""


class Ranker(NamedTuple):
    """A method with one kind of query and one sign."""

    method: str
    query_kind: str
    """`own`, `concept`, or `none` for a baseline without gradients."""
    flipped: int = 0
    """1 if the scores' sign is flipped."""

    def __str__(self) -> str:
        query = ", concept query" if self.query_kind == "concept" else ""
        return f"{self.method}{query}{', sign flipped' if self.flipped else ''}"


@dataclass(frozen=True)
class RankerMeasures:
    """One ranker at one damping: AP - base rate, P@10 and recall@carriers, each [models, queries, cells].

    `named` and `unnamed` are AP - base rate among the carriers whose caption names the concept and among the others;
    NaN where one of the two has none.
    """

    gain: Values
    precision: Values
    recall: Values
    named: Values
    unnamed: Values

    def of_queries(self, queries: slice) -> "RankerMeasures":
        return RankerMeasures(
            **{name: values[:, queries] for name, values in vars(self).items()},
        )


MeasuresByDamping = dict[Ranker, dict[float, RankerMeasures]]


def collect_measures(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], cells: Sequence[Cell]
) -> MeasuresByDamping:
    """The grades as arrays.

    Args:
        rows: rows of `benchmark.grade_rows`, each with its model and method.
        models: the order of the models in the arrays.
        cells: the order of the cells in the arrays.
    """
    model, cell = {m: i for i, m in enumerate(models)}, {c.name: i for i, c in enumerate(cells)}
    queries = 1 + max(row["query"] for row in rows)
    blank = np.full((5, len(models), queries, len(cells)), np.nan)
    arrays: dict[tuple[Ranker, float], np.ndarray] = defaultdict(blank.copy)
    for row in rows:
        ranker = Ranker(row["method"], row["query_kind"], row["flipped"])
        index = (slice(None), model[row["model"]], row["query"], cell[row["concept"]])
        gain = row["average_precision"] - row["base_rate"]
        values = (gain, *(row[name] for name in ("precision_at_10", "recall_at_carriers", *BY_CAPTION)))
        arrays[ranker, row["damping"]][index] = values
    measures: MeasuresByDamping = defaultdict(dict)
    for (ranker, damping), (gain, precision, recall, named, unnamed) in arrays.items():
        assert not np.isnan(gain).any(), f"{ranker} at damping {damping:g} lacks grades of some model, query or cell"
        measures[ranker][damping] = RankerMeasures(
            gain=gain, precision=precision, recall=recall, named=named, unnamed=unnamed
        )
    return measures


def choose_damping(dampings: Mapping[float, RankerMeasures]) -> float:
    """The damping with the largest merit over the even queries; the largest one if several are equal."""
    return max(sorted(dampings, reverse=True), key=lambda d: merit(dampings[d].of_queries(slice(0, None, 2)).gain))


@dataclass(frozen=True)
class LeaderboardLine:
    """One ranker; every number comes from the odd queries.

    Pairs are (in distribution, out of distribution), with NaN if there are no such cells.
    """

    ranker: Ranker
    damping: float
    merit: float
    """Mean AP - base rate of the worst cell."""
    worst: str
    """The name of the worst cell."""
    per_model: tuple[float, ...]
    """The merit in each model."""
    cells: tuple[float, ...]
    """Mean AP - base rate of each cell; `merit` is the smallest of them."""
    gain: tuple[float, float]
    """Mean AP - base rate."""
    precision: tuple[float, float]
    """Mean P@10."""
    recall: tuple[float, float]
    """Mean recall@carriers."""
    gap: tuple[float, float]
    """95 % interval of the reference's merit minus this ranker's."""
    gap_per_model: tuple[float, ...]
    mean_gap: tuple[float, float]
    """95 % interval of the same difference for the mean over cells instead of the worst cell."""
    mean_gap_per_model: tuple[float, ...]
    gain_named: float
    """Mean AP - base rate among the carriers whose caption names the concept; NaN if all or none do."""
    gain_unnamed: float
    """The same among the carriers whose caption does not name it."""
    unnamed_gap: tuple[float, float]
    """95 % interval of the reference's `gain_unnamed` minus this ranker's."""


def leaderboard_lines(measures: MeasuresByDamping, cells: Sequence[Cell], reference: Ranker) -> list[LeaderboardLine]:
    """The line of every ranker, ordered by merit, the largest first."""
    dampings = {ranker: choose_damping(by_damping) for ranker, by_damping in measures.items()}
    odd = {ranker: measures[ranker][damping].of_queries(slice(1, None, 2)) for ranker, damping in dampings.items()}
    lines = [_line(ranker, dampings[ranker], own, cells, odd[reference]) for ranker, own in odd.items()]
    return sorted(lines, key=lambda line: -line.merit)


def _line(
    ranker: Ranker, damping: float, own: RankerMeasures, cells: Sequence[Cell], of_reference: RankerMeasures
) -> LeaderboardLine:
    reference = of_reference.gain
    held_out = np.array([cell.held_out for cell in cells])
    by_cell = own.gain.mean((0, 1))
    per_model = _merit_per_model(own.gain)
    return LeaderboardLine(
        ranker=ranker,
        damping=damping,
        merit=merit(own.gain),
        worst=cells[int(by_cell.argmin())].name,
        per_model=per_model,
        cells=tuple(by_cell.tolist()),
        gain=_in_and_out(own.gain, held_out),
        precision=_in_and_out(own.precision, held_out),
        recall=_in_and_out(own.recall, held_out),
        gap=interval_of_difference(reference, own.gain),
        gap_per_model=tuple(a - b for a, b in zip(_merit_per_model(reference), per_model, strict=True)),
        mean_gap=interval_of_difference(reference, own.gain, over=np.mean),
        mean_gap_per_model=tuple((reference - own.gain).mean((1, 2)).tolist()),
        gain_named=_mean_known(own.named),
        gain_unnamed=_mean_known(own.unnamed),
        unnamed_gap=_known_gap(of_reference.unnamed, own.unnamed),
    )


def _merit_per_model(gain: Values) -> tuple[float, ...]:
    return tuple(merit(gain[i : i + 1]) for i in range(len(gain)))


def _in_and_out(values: Values, held_out: np.ndarray) -> tuple[float, float]:
    return _mean(values[..., ~held_out]), _mean(values[..., held_out])


def _mean_known(values: Values) -> float:
    """The mean over the cells whose carriers have captions of both kinds."""
    return _mean(values[..., _known(values)])


def _known(values: Values) -> np.ndarray:
    return np.asarray(~np.isnan(values).any(axis=(0, 1)))


def _known_gap(reference: Values, own: Values) -> tuple[float, float]:
    cells = _known(reference) & _known(own)
    if not cells.any():
        return float("nan"), float("nan")
    return interval_of_difference(reference[..., cells], own[..., cells], over=np.mean)


def _mean(values: Values) -> float:
    return float(values.mean()) if values.size else float("nan")


@dataclass(frozen=True)
class Leaderboard:
    """The result for one data set: every ranker's line, best first, and its merit at every damping over all queries."""

    title: str
    models: tuple[str, ...]
    cells: tuple[Cell, ...]
    base_rates: tuple[float, ...]
    """By cell."""
    queries: int
    reference: Ranker
    lines: tuple[LeaderboardLine, ...]
    curves: dict[Ranker, dict[float, float]]
    evaluations: dict[str, int]
    """By method, the network evaluations of one training sample; 0 for baselines without gradients."""


def build_leaderboard(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    cells: Sequence[Cell],
    reference: Ranker,
    evaluations: dict[str, int],
) -> Leaderboard:
    """The leaderboard of one data set, whose models share their cells.

    Args:
        title: the title of the leaderboard.
        rows: the grades of all models; their order decides the order of the models.
        cells: the cells of the data set.
        reference: the ranker that every other is compared with.
        evaluations: by method, the network evaluations of one training sample.
    """
    models = tuple(dict.fromkeys(row["model"] for row in rows))
    base_rates = {row["concept"]: row["base_rate"] for row in rows}
    measures = collect_measures(rows, models, cells)
    return Leaderboard(
        title=title,
        models=models,
        cells=tuple(cells),
        base_rates=tuple(base_rates[cell.name] for cell in cells),
        queries=1 + max(row["query"] for row in rows),
        reference=reference,
        lines=tuple(leaderboard_lines(measures, cells, reference)),
        curves={r: {d: merit(m.gain) for d, m in sorted(by.items())} for r, by in measures.items()},
        evaluations=evaluations,
    )


def best_baseline(lines: Sequence[LeaderboardLine]) -> LeaderboardLine:
    """The best line of `BASELINES` without a flipped sign, because the sign of a method is fixed before the grading."""
    return next(line for line in lines if line.ranker.method in BASELINES and not line.ranker.flipped)
