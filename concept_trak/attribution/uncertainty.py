"""How far a score is from what more samples of the query would give: an interval from the samples themselves.

A score is the mean over the query's samples of w_i phi_i . z_s. Its standard error is that of the mean, taken within
each phrasing, and the interval is Student's.

The samples can be divided into groups, so that fewer scores are computed: an interval from the groups' mean features is
as wide on average, apart from Student's quantile.

n training samples, m samples of the query, k features, g groups.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

LEVEL = 0.9
"""Coverage of an interval."""


GROUPS = 4
"""Groups of a query's samples in an audit. More would narrow the intervals (Student's quantile of 4 is 2.35, of 8 is
1.89), and each costs a score of every training sample."""


def example_groups(examples: int, samples: int) -> int:
    """The number of groups that a concept's examples are divided into: no two groups of samples share an example.

    So the scores by different groups differ also by what the examples do not share, and an interval covers it. A lone
    example is that of all samples.

    Args:
        examples: the number of example pictures; 0 for a concept without examples.
        samples: the number of samples of the query.
    """
    return min(GROUPS, examples, samples)


class ScoreInterval(NamedTuple):
    """The mean over the samples of a query, and the ends of its interval, which are NaN where no spread is known."""

    mean: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]


def score_intervals(values: Float[Tensor, "n m"], phrasings: int = 1, level: float = LEVEL) -> ScoreInterval:
    """The interval of every training sample's score.

    With r_p samples of phrasing p and s_p^2 their variance, the variance of the mean over P phrasings is
    sum_p s_p^2 / r_p / P^2, with sum_p (r_p - 1) degrees of freedom.

    Args:
        values: one column for each sample of the query; sample i has the phrasing i mod `phrasings`.
        level: coverage of the interval, in (0, 1).
    """
    by_phrasing = [values[:, i::phrasings] for i in range(phrasings)]
    mean = torch.stack([own.mean(1) for own in by_phrasing]).mean(0)
    freedom = values.shape[1] - phrasings
    if any(own.shape[1] < 2 for own in by_phrasing):
        unknown = torch.full_like(mean, math.nan)
        return ScoreInterval(mean, unknown, unknown)
    variance = torch.stack([own.var(1) / own.shape[1] for own in by_phrasing]).sum(0) / phrasings**2
    reach = student_quantile(0.5 + level / 2, freedom) * variance.sqrt()
    return ScoreInterval(mean, mean - reach, mean + reach)


def student_quantile(p: float, freedom: int) -> float:
    """The quantile of Student's t distribution, for p in (0, 1).

    Exact for 1 and 2 degrees of freedom; from 3 on the expansion of Fisher and Cornish (1960) about the normal
    quantile, whose relative error at p = 0.95 is below 1e-3.
    """
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z, v = NormalDist().inv_cdf(p), freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**i for i, term in enumerate(terms, 1))


def query_groups(phi: Float[Tensor, "m k"], phrasings: int = 1, groups: int = 0) -> Float[Tensor, "g k"] | None:
    """Features of one concept from disjoint groups of its samples; None if a phrasing has a single sample.

    Args:
        phi: the features of the samples; sample i has the phrasing i mod `phrasings`.
        phrasings: their number. Every group gives each phrasing the same weight, as the concept's own feature does.
        groups: at most this many, fewer if a phrasing has fewer samples; below 2 it is `GROUPS`.
    """
    number = min(groups if groups > 1 else GROUPS, len(phi) // phrasings)
    if number < 2:
        return None
    by_phrasing = [phi[i::phrasings] for i in range(phrasings)]
    return torch.stack([torch.stack([rows[g::number].mean(0) for rows in by_phrasing]).mean(0) for g in range(number)])


def independent_features(phi: Float[Tensor, "m k"], examples: int) -> Float[Tensor, "n k"]:
    """The features of the samples of a query; of its groups if its samples share examples and are not independent."""
    groups = query_groups(phi, 1, example_groups(examples, len(phi))) if examples > 1 else None
    return phi if groups is None else groups


def mean_correlation(correlations: Float[Tensor, "g g"]) -> float:
    """The mean correlation of different columns, in [-1 / (g - 1), 1]."""
    g = len(correlations)
    return ((correlations.sum() - correlations.trace()) / (g * (g - 1))).item()


def reliability(correlation: float, groups: int) -> float:
    """The reliability g r / (1 + (g - 1) r) of the mean of g groups' scores, in [0, 1] (Spearman 1910, Brown 1910).

    Args:
        correlation: r, the mean correlation of the scores by two groups. A negative one counts as 0.
        groups: g.
    """
    r = max(correlation, 0.0)
    return groups * r / (1 + (groups - 1) * r)


def rank_interval(
    interval: tuple[float, float], rank: int, best: Sequence[float], counts: Sequence[int], reach: float
) -> tuple[int, int]:
    """The ranks that the high and the low end of a score's interval would have among all scores.

    Args:
        interval: the low and the high end.
        rank: the rank of the score itself, from 1.
        best: the best scores of all, in order; among them ranks are exact.
        counts: of all scores in equal bins over [-reach, reach], with those beyond in the outermost bins. Where `best`
            ends, ranks are bounded by whole bins, so that the interval is not too narrow.
    """
    low, high = interval
    return min(rank, 1 + _number_above(high, best, counts, reach)[0]), max(
        rank, _number_above(low, best, counts, reach)[1]
    )


def _number_above(value: float, best: Sequence[float], counts: Sequence[int], reach: float) -> tuple[int, int]:
    """The fewest and the most scores that can be higher than `value`."""
    exact = bisect_left(best, -value, key=lambda score: -score)
    if exact < len(best) or len(best) == sum(counts) or reach <= 0:
        return exact, exact
    place = min(max(int((value / reach + 1) * len(counts) / 2), 0), len(counts) - 1)
    return max(len(best), sum(counts[place + 1 :])), max(len(best), sum(counts[place:]))
