"""The damping chosen without labels: the one at which a concept's own queries agree most, and different concepts least.

Each concept is asked twice, with the two halves of its samples. Of the scores of training samples,

    within  = mean correlation between the two halves of a concept
    between = mean correlation between halves of different concepts

and the damping with the largest within - between is chosen. Too little damping makes the scores noise, and within
falls; too much lets what all concepts share decide, and between rises. Without the centring of a correlation, what all
scores share would be taken for agreement (assets/study.md).

n training samples, m queries, k features.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.fisher import Gram, solve_damped
from concept_trak.attribution.ranking import scores

DAMPINGS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
"""Those that `damping=auto` chooses from; with decades alone it loses up to .04 of mean AP (assets/study.md)."""
DEFAULT_DAMPING = 100.0


class DampingPoint(NamedTuple):
    """How well queries agree at one damping: correlations of scores, in [-1, 1].

    Attributes:
        within, between: the means (see above).
        own: of each concept, between its two halves.
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
        curve: empty where nothing was chosen.
        reason: why `damping=auto` fell back to the default; empty otherwise.
    """

    damping: float
    curve: tuple[DampingPoint, ...] = ()
    reason: str = ""

    @property
    def reliability(self) -> tuple[float, ...]:
        """Of each concept with two halves, that of its scores over all samples, in (-inf, 1]: 2 r / (1 + r) of the
        halves' correlation r (Spearman 1910, Brown 1910). At 1/2 as much of the scores is noise as is not."""
        own = next((point.own for point in self.curve if point.damping == self.damping), ())
        return tuple(2 * r / (1 + r) if r > -1 else -float("inf") for r in own)


def query_halves(phi: Float[Tensor, "m k"], phrasings: int = 1) -> Float[Tensor, "2 k"] | None:
    """Two features of one concept from disjoint halves of its samples; None where a phrasing has one sample only.

    Args:
        phi: of the samples; sample i has the phrasing i mod `phrasings`.
        phrasings: which both halves weigh alike, as the concept's own feature does.
    """
    if len(phi) < 2 * phrasings:
        return None
    by_phrasing = [phi[i::phrasings] for i in range(phrasings)]
    return torch.stack([torch.stack([rows[half::2].mean(0) for rows in by_phrasing]).mean(0) for half in (0, 1)])


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
        all_phi: as `solve_damped` takes it.
        phi: of the samples whose scores are correlated: all of them, or some.
        weight: of these samples.
    """
    queries, points = torch.cat(list(halves)), list[DampingPoint]()
    for damping in dampings:
        solution, _ = solve_damped(gram, damping, queries, all_phi)
        correlations = score_correlations(scores(phi.double(), weight.double(), solution.z))
        own = tuple(correlations.diagonal(1)[::2].tolist())
        points.append(DampingPoint(damping, *agreement_of_halves(correlations), own))
    return tuple(points)


def score_correlations(values: Float[Tensor, "n m"]) -> Float[Tensor, "m m"]:
    """Correlations of columns of scores; a constant column correlates with none."""
    centred = values - values.mean(0)
    length = centred.norm(dim=0)
    return torch.where(length[:, None] * length > 0, centred.T @ centred / (length[:, None] * length), 0.0)


def agreement_of_halves(correlations: Float[Tensor, "m m"]) -> tuple[float, float]:
    """(within, between): the means over the two halves of one concept, and over halves of different ones.

    Args:
        correlations: of scores, two columns for each concept, in the order of the concepts.
    """
    concept = torch.arange(len(correlations)) // 2
    between = correlations[concept[:, None] != concept]
    return correlations.diagonal(1)[::2].mean().item(), between.mean().item()


def most_separating_damping(curve: Sequence[DampingPoint]) -> float:
    """The damping with the largest within - between; of equals the strongest."""
    return max(curve, key=lambda point: (point.separation, point.damping)).damping


def why_default(halves: Sequence[object | None]) -> str:
    """Why `damping=auto` cannot choose from the halves of every concept asked; empty if it can."""
    if len(halves) < 2:
        return "one concept is asked, and the choice compares concepts"
    if sum(half is not None for half in halves) < 2:
        return "fewer than two concepts have two samples, and the choice compares the halves of a concept"
    return ""
