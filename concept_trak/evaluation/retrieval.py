"""Measures of how well a method retrieves the samples that show a concept, over queries, cells and models.

A cell is one factor of one pair of a two-factor data set: "red" in "a red triangle". Retrieval in a single cell proves
nothing, because a ranking that ignores the query can be perfect there. The merit of a method is that of its worst cell,

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
"""Prefixes of the names of the labels that decide whether a sample is relevant: labels of the image, labels of its
caption, or both."""


@dataclass(frozen=True)
class Cell:
    """One factor of one pair. `held_out` is true if the pair is not in the training set."""

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
        return f"{self.value}_in_{self.pair[1]}_{self.pair[0]}".replace(" ", "_")


def cells(kinds: TwoFactors, pairs: Sequence[Pair] = ()) -> list[Cell]:
    """Both factors of every pair, or of `pairs` if given, in the data set's order."""
    selected = [pair for pair in kinds.all_pairs if not pairs or pair in pairs]
    return [Cell(pair, factor, pair in kinds.held_out) for pair in selected for factor in kinds.columns]


def cell_concept(cell: Cell, kinds: TwoFactors, empty: bool, samples: int, truth: str) -> Concept:
    """The cell as a concept.

    Args:
        cell: the cell.
        kinds: the data set.
        empty: whether the model was trained with captions that leave a factor out. If so, the prompt without the
            concept leaves the factor out; otherwise it has the factor's next value.
        samples: trajectories of a query.
        truth: a row of `TRUTHS`.
    """
    thing, look = cell.pair
    if cell.factor in LOOKS:
        other = None if empty else _next(look, kinds.looks)
        without = pair_caption(thing, other)
    else:
        other = None if empty else _next(thing, kinds.things)
        without = pair_caption(other, look)
    label = kinds.label(cell.factor, cell.value)
    shows = {f"{prefix}{label}": cell.value for prefix in TRUTHS[truth]}
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
    """The measures of `ranking.py` for every column of scores; ties are ordered by sample id."""
    hits = relevant[ranks_of_columns(scores, ids)]
    retrieved, total = hits.cumsum(0), int(relevant.sum())
    precision = retrieved / np.arange(1, len(hits) + 1)[:, None]
    return Grades(
        average_precision=(precision * hits).sum(0) / max(1, total),
        precision_at_10=hits[:10].mean(0),
        recall_at_carriers=retrieved[total - 1] / total if total else np.zeros(hits.shape[1]),
    )


def ranked_ids(scores: Float[np.ndarray, " n"], ids: Sequence[str]) -> list[str]:
    """The ids in the order that `grade` uses, best first."""
    return [str(ids[i]) for i in ranks_of_columns(scores[:, None], ids)[:, 0]]


def ranks_of_columns(scores: Float[np.ndarray, "n m"], ids: Sequence[str]) -> Int[np.ndarray, "n m"]:
    """The row numbers of each column, best first; ties are ordered by id."""
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
    """Interval of merit(ours) - merit(theirs) by a hierarchical bootstrap, which draws models, then queries of each.

    Both sides use the same draws, because they have the same queries and models (Davison and Hinkley 1997, ch. 3.8).

    Args:
        ours: AP - base rate of one ranker.
        theirs: AP - base rate of another ranker.
        level: coverage of the interval, in [0, 1].
        draws: the number of bootstrap samples.
        seed: the seed of the draws.
        over: reduces the means of the cells; `np.mean` compares the mean over cells instead of the worst cell.
    """
    rng = np.random.default_rng(seed)
    models, queries, _ = ours.shape
    model_rows = rng.integers(models, size=(draws, models, 1))
    query_rows = rng.integers(queries, size=(draws, models, queries))
    merits = [over(v[model_rows, query_rows].mean((1, 2)), axis=1) for v in (ours, theirs)]
    low, high = np.quantile(merits[0] - merits[1], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
