"""How well a method finds the samples that show a concept, over many queries, cells and models, with intervals.

A cell is one factor of one pair of a two-factor data set: "red" in "a red triangle". Retrieval in one cell proves
nothing, since a ranking that is the same for every question can be perfect there. A method's merit is its worst cell,

    merit = min over cells of mean over models and queries of (AP - base rate).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from concept_trak.attribution.concept import Concept
from concept_trak.data.benchmarks.two_factors import LOOKS, Pair, TwoFactors, pair_caption

Values = Float[np.ndarray, "models queries cells"]
TRUTHS = {"shown": ("",), "said": ("said_",), "both": ("", "said_")}
"""The labels that decide whether a sample is relevant, by the prefixes of their names: those of what the image shows,
those of what its caption names, or both."""


@dataclass(frozen=True)
class Cell:
    """One factor of one pair. `held_out`: training never showed the pair."""

    pair: Pair
    factor: str
    held_out: bool

    @property
    def value(self) -> str:
        """The factor's value: "red"."""
        return self.pair[1] if self.factor in LOOKS else self.pair[0]

    @property
    def name(self) -> str:
        """A name for files and columns: "red_in_red_triangle"."""
        return f"{self.value}_in_{self.pair[1]}_{self.pair[0]}"


def cells(kinds: TwoFactors, pairs: Sequence[Pair] = ()) -> list[Cell]:
    """Both factors of every pair, or of `pairs` if given, in the data set's order."""
    selected = [pair for pair in kinds.all_pairs if not pairs or pair in pairs]
    return [Cell(pair, factor, pair in kinds.held_out) for pair in selected for factor in kinds.columns]


def cell_concept(cell: Cell, kinds: TwoFactors, empty: bool, samples: int, truth: str) -> Concept:
    """The cell as a concept.

    Args:
        empty: Whether the model was trained with captions that leave a factor out. Then c-minus leaves the factor out,
            else it has the factor's next value.
        samples: Query trajectories.
        truth: A row of `TRUTHS`.
    """
    thing, look = cell.pair
    if cell.factor in LOOKS:
        other = None if empty else _next(look, kinds.looks)
        without = pair_caption(thing, other)
    else:
        other = None if empty else _next(thing, kinds.things)
        without = pair_caption(other, look)
    shows = {f"{prefix}{cell.factor}": cell.value for prefix in TRUTHS[truth]}
    return Concept(
        name=cell.name, prompt=pair_caption(*cell.pair), without_prompt=without, samples=samples, truth=shows
    )


def _next(value: str, values: Sequence[str]) -> str:
    return values[(values.index(value) + 1) % len(values)]


@dataclass(frozen=True)
class Grades:
    """Measures of m rankings, each in [0, 1]."""

    average_precision: Float[np.ndarray, " m"]
    precision_at_10: Float[np.ndarray, " m"]
    recall_at_carriers: Float[np.ndarray, " m"]


def grade(scores: Float[np.ndarray, "n m"], relevant: Bool[np.ndarray, " n"], ids: Sequence[str]) -> Grades:
    """The measures of `ranking.py` for every column of scores at once; ties are ordered by sample id."""
    hits = relevant[_order(scores, ids)]
    retrieved, total = hits.cumsum(0), int(relevant.sum())
    precision = retrieved / np.arange(1, len(hits) + 1)[:, None]
    return Grades(
        average_precision=(precision * hits).sum(0) / max(1, total),
        precision_at_10=hits[:10].mean(0),
        recall_at_carriers=retrieved[total - 1] / total if total else np.zeros(hits.shape[1]),
    )


def ranked_ids(scores: Float[np.ndarray, " n"], ids: Sequence[str]) -> list[str]:
    """The ids in the order that `grade` measures, best first."""
    return [str(ids[i]) for i in _order(scores[:, None], ids)[:, 0]]


def _order(scores: Float[np.ndarray, "n m"], ids: Sequence[str]) -> Int[np.ndarray, "n m"]:
    """The rows of each column, best first; ties by id."""
    order = np.argsort(np.asarray(ids, dtype=str), kind="stable")
    return order[np.argsort(-scores[order], axis=0, kind="stable")]


def merit(values: Values) -> float:
    """The worst cell's mean over models and queries."""
    return float(values.mean((0, 1)).min())


def interval_of_difference(
    ours: Values,
    theirs: Values,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    over: Callable[..., np.ndarray] = np.min,
) -> tuple[float, float]:
    """Interval of merit(ours) - merit(theirs) by hierarchical bootstrap: models are drawn, then queries within each.

    Both are drawn alike, since they have the same queries and models (Davison and Hinkley 1997, ch. 3.8).

    Args:
        level: Coverage of the interval, in 0 ... 1.
        draws: Bootstrap samples.
        over: Reduces the means of the cells; `np.mean` compares the mean over the cells in place of the worst one.
    """
    rng = np.random.default_rng(seed)
    models, queries, _ = ours.shape
    model_rows = rng.integers(models, size=(draws, models, 1))
    query_rows = rng.integers(queries, size=(draws, models, queries))
    merits = [over(v[model_rows, query_rows].mean((1, 2)), axis=1) for v in (ours, theirs)]
    low, high = np.quantile(merits[0] - merits[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
