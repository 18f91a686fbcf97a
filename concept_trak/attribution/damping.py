"""A choice of the damping without labels: queries for one concept should agree, and for different concepts differ.

Each concept gives two queries, one from each half of its samples. For the scores of training samples under them,

    within  = mean correlation between the two halves of a concept
    between = mean correlation between halves of different concepts

and the choice is the damping with the largest within - between. With too little damping the scores are noise, and
`within` falls. With too much, parts of the features that all concepts share dominate the scores, and `between` rises.
Correlations are centred, because otherwise a part that all scores share would count as agreement (assets/study.md).

n training samples, m queries, k features.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.fisher import Gram, solve_damped
from concept_trak.attribution.ranking import scores
from concept_trak.attribution.uncertainty import query_groups

DAMPINGS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""The candidates of `damping=auto`; powers of 10 alone would lose up to .04 of mean AP (assets/study.md)."""
DEFAULT_DAMPING = 100.0


class DampingPoint(NamedTuple):
    """How well queries agree at one damping: correlations of scores, in [-1, 1].

    Attributes:
        damping: relative to the mean eigenvalue of K.
        within: the mean correlation between the two halves of a concept.
        between: the mean correlation between halves of different concepts.
        own: by concept, the correlation between its two halves.
    """

    damping: float
    within: float
    between: float
    own: tuple[float, ...] = ()

    @property
    def separation(self) -> float:
        """within - between."""
        return self.within - self.between


class DampingChoice(NamedTuple):
    """A damping, with the curve that it was chosen from.

    Attributes:
        damping: relative to the mean eigenvalue of K.
        curve: empty if no choice was made.
        reason: why `damping=auto` used the default; empty otherwise.
    """

    damping: float
    curve: tuple[DampingPoint, ...] = ()
    reason: str = ""

    @property
    def reliability(self) -> tuple[float, ...]:
        """The reliability of each concept's scores, for concepts with two halves, in (-inf, 1].

        It is 2 r / (1 + r), with the correlation r of the halves (Spearman 1910, Brown 1910). At 1/2, half of the
        variance of the scores is noise.
        """
        own = next((point.own for point in self.curve if point.damping == self.damping), ())
        return tuple(2 * r / (1 + r) if r > -1 else -float("inf") for r in own)


def query_halves(phi: Float[Tensor, "m k"], phrasings: int = 1) -> Float[Tensor, "2 k"] | None:
    """Two features of one concept from disjoint halves of its samples; None if a phrasing has a single sample.

    Args:
        phi: the features of the samples; sample i has the phrasing i mod `phrasings`.
        phrasings: their number. Both halves give every phrasing the same weight, as the concept's own feature does.
    """
    return query_groups(phi, phrasings, 2)


def damping_curve(
    gram: Gram,
    halves: Sequence[Float[Tensor, "2 k"]],
    all_phi: Callable[[], Float[Tensor, "all k"]],
    phi: Float[Tensor, "n k"],
    weight: Float[Tensor, " n"],
    dampings: Sequence[float] = DAMPINGS,
) -> tuple[DampingPoint, ...]:
    """The agreement of two or more concepts' halves at every damping.

    Args:
        gram: K of all samples.
        halves: the two features of each concept, from `query_halves`.
        all_phi: returns the features of all samples (see `solve_damped`).
        phi: the features of the samples whose scores are correlated: all samples, or some of them.
        weight: the weights of these samples.
        dampings: the candidates.
    """
    queries, points = torch.cat(list(halves)), list[DampingPoint]()
    for damping in dampings:
        solution, _ = solve_damped(gram, damping, queries, all_phi)
        correlations = score_correlations(scores(phi.double(), weight.double(), solution.z))
        own = tuple(correlations.diagonal(1)[::2].tolist())
        points.append(DampingPoint(damping, *agreement_of_halves(correlations), own))
    return tuple(points)


def score_correlations(values: Float[Tensor, "n m"]) -> Float[Tensor, "m m"]:
    """Correlations of columns of scores; those of a constant column are 0."""
    centred = values - values.mean(0)
    length = centred.norm(dim=0)
    return torch.where(length[:, None] * length > 0, centred.T @ centred / (length[:, None] * length), 0.0)


def agreement_of_halves(correlations: Float[Tensor, "m m"]) -> tuple[float, float]:
    """(within, between): the mean over the two halves of one concept, and the mean over halves of different concepts.

    Args:
        correlations: of columns of scores, with two columns for each concept, in the order of the concepts.
    """
    concept = torch.arange(len(correlations)) // 2
    between = correlations[concept[:, None] != concept]
    return correlations.diagonal(1)[::2].mean().item(), between.mean().item()


def most_separating_damping(curve: Sequence[DampingPoint]) -> float:
    """The damping with the largest within - between; the largest one if several are equal."""
    return max(curve, key=lambda point: (point.separation, point.damping)).damping


def why_default(halves: Sequence[object | None]) -> str:
    """The reason why `damping=auto` cannot choose from these concepts' halves; empty if it can."""
    if len(halves) < 2:
        return "there is one concept, and the choice compares concepts"
    if sum(half is not None for half in halves) < 2:
        return "fewer than two concepts have two samples, and the choice compares the halves of a concept"
    return ""
