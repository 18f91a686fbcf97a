"""From the grades of many rankings to a table: every arm at a damping chosen on queries that are then not counted.

An arm is a method with one kind of query and one sign. Its damping is the one with the best merit over the even
queries; all its numbers are taken over the odd ones.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from concept_trak.evaluation.retrieval import Cell, Values, interval_of_difference, merit

BASELINES = ("trak", "d_trak", "das", "pixels", "activation")
"""What a row must beat to be recommended, whatever query they are asked with."""


class Ranker(NamedTuple):
    method: str
    asked: str
    """`own`, `concept`, or `none` for a rival."""
    flipped: int = 0

    def __str__(self) -> str:
        query = ", concept query" if self.asked == "concept" else ""
        return f"{self.method}{query}{', sign flipped' if self.flipped else ''}"


@dataclass(frozen=True)
class RankerMeasures:
    """One arm at one damping: [models, queries, cells] of AP - base rate, P@10 and recall@carriers."""

    gain: Values
    precision: Values
    recall: Values

    def some(self, queries: slice) -> "RankerMeasures":
        return RankerMeasures(self.gain[:, queries], self.precision[:, queries], self.recall[:, queries])


MeasuresByDamping = dict[Ranker, dict[float, RankerMeasures]]


def collect_measures(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], cells: Sequence[Cell]
) -> MeasuresByDamping:
    """Rows as `trial.Grade` and `rival.Compete` give them, as arrays in the order of `models` and `cells`."""
    model, cell = {m: i for i, m in enumerate(models)}, {c.name: i for i, c in enumerate(cells)}
    queries = 1 + max(row["query"] for row in rows)
    blank = np.full((3, len(models), queries, len(cells)), np.nan)
    arrays: dict[tuple[Ranker, float], np.ndarray] = defaultdict(blank.copy)
    for r in rows:
        arm = Ranker(r["method"], r["asked"], r["flipped"])
        place = (slice(None), model[r["model"]], r["query"], cell[r["concept"]])
        gain = r["average_precision"] - r["base_rate"]
        arrays[arm, r["damping"]][place] = (gain, r["precision_at_10"], r["recall_at_carriers"])
    result: MeasuresByDamping = defaultdict(dict)
    for (arm, damping), values in arrays.items():
        assert not np.isnan(values).any(), f"{arm} at damping {damping:g} lacks grades of some model, query or cell"
        result[arm][damping] = RankerMeasures(*values)
    return result


def choose_damping(dampings: Mapping[float, RankerMeasures]) -> float:
    """The damping with the best merit over the even queries; the strongest of equals."""
    return max(sorted(dampings, reverse=True), key=lambda d: merit(dampings[d].some(slice(0, None, 2)).gain))


@dataclass(frozen=True)
class LeaderboardLine:
    """One line of the table; every number over the odd queries."""

    arm: Ranker
    damping: float
    merit: float
    """The worst cell's mean AP - base rate."""
    worst: str
    """The worst cell."""
    per_model: tuple[float, ...]
    cells: tuple[float, ...]
    """Mean AP - base rate of each cell; `merit` is the least of them."""
    gain: tuple[float, float]
    """Mean AP - base rate in and out of distribution; so are P@10 and recall@carriers. NaN where no cell is asked."""
    precision: tuple[float, float]
    recall: tuple[float, float]
    behind: tuple[float, float]
    """Interval of the reference's merit minus this one's."""
    behind_per_model: tuple[float, ...]
    mean_behind: tuple[float, float]
    """The same of the mean over the cells, in place of the worst one."""
    mean_behind_per_model: tuple[float, ...]


def leaderboard_lines(grades: MeasuresByDamping, cells: Sequence[Cell], reference: Ranker) -> list[LeaderboardLine]:
    """Every arm, best first."""
    held = {arm: (d := choose_damping(by), by[d].some(slice(1, None, 2))) for arm, by in grades.items()}
    ours = held[reference][1].gain
    lines = [_standing(arm, damping, m, cells, ours) for arm, (damping, m) in held.items()]
    return sorted(lines, key=lambda line: -line.merit)


def _standing(arm: Ranker, damping: float, m: RankerMeasures, cells: Sequence[Cell], ours: Values) -> LeaderboardLine:
    out = np.array([c.held_out for c in cells])
    sides = [(_mean(v[..., ~out]), _mean(v[..., out])) for v in (m.gain, m.precision, m.recall)]
    by_cell = m.gain.mean((0, 1))
    single = tuple(merit(m.gain[i : i + 1]) for i in range(len(m.gain)))
    theirs = tuple(merit(ours[i : i + 1]) - s for i, s in enumerate(single))
    worst, each = cells[int(by_cell.argmin())].name, tuple(by_cell.tolist())
    behind, means = interval_of_difference(ours, m.gain), tuple((ours - m.gain).mean((1, 2)).tolist())
    mean_behind = interval_of_difference(ours, m.gain, over=np.mean)
    measured = (merit(m.gain), worst, single, each, sides[0], sides[1], sides[2])
    return LeaderboardLine(arm, damping, *measured, behind, theirs, mean_behind, means)


def _mean(values: Values) -> float:
    return float(values.mean()) if values.size else float("nan")


@dataclass(frozen=True)
class Leaderboard:
    """One data set's result: every arm's line, and its merit at every damping over all queries."""

    title: str
    models: tuple[str, ...]
    cells: tuple[Cell, ...]
    base_rates: tuple[float, ...]
    queries: int
    reference: Ranker
    lines: tuple[LeaderboardLine, ...]
    curves: dict[Ranker, dict[float, float]]
    evaluations: dict[str, int]
    """Network evaluations a training sample costs, by method; 0 for rivals."""


def build_leaderboard(
    title: str, rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell], reference: Ranker, evaluations: dict[str, int]
) -> Leaderboard:
    """From the grades of one data set's models, which share their cells; models in the order they come."""
    models = tuple(dict.fromkeys(row["model"] for row in rows))
    grades, base = collect_measures(rows, models, cells), {row["concept"]: row["base_rate"] for row in rows}
    curves = {arm: {d: merit(m.gain) for d, m in sorted(by.items())} for arm, by in grades.items()}
    lines = tuple(leaderboard_lines(grades, cells, reference))
    queries = 1 + max(row["query"] for row in rows)
    rates = tuple(base[c.name] for c in cells)
    return Leaderboard(title, models, tuple(cells), rates, queries, reference, lines, curves, evaluations)


def best_baseline(lines: Sequence[LeaderboardLine]) -> LeaderboardLine:
    """The baseline to beat, unflipped: a sign chosen on the answer is no method."""
    return next(line for line in lines if line.arm.method in BASELINES and not line.arm.flipped)
