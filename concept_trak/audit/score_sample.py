"""The scores of a keyed sample of the training set, which compare the rankings of different methods.

Every method is scored by itself and part by part, and only the ends of its ranking return to the driver. So that ranks
can be correlated, the scores of about `SAMPLED` samples return as well. They are chosen by their ids alone, so every
method returns those of the same samples, however the data are cut. A data set of at most `SAMPLED` samples returns all.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from jaxtyping import Float
from torch import Tensor

SAMPLED = 1000
"""The standard error of a rank correlation of 0 is about 1 / sqrt(SAMPLED), .03."""
FEWEST = 3
"""Samples below which ranks are not correlated."""


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation in [-1, 1], and the number of samples that it is from."""

    value: float
    samples: int


def sampled_scores(ids: Sequence[str], values: Float[Tensor, "n c"], of: int) -> dict[str, tuple[float, ...]]:
    """The scores of the chosen samples of a part, by id.

    Args:
        ids, values: of the samples of the part, with one score for each column.
        of: the number of samples of all parts.
    """
    rows = sampled_rows(ids, of)
    return {ids[row]: tuple(scores) for row, scores in zip(rows, values[rows].tolist(), strict=True)}


def sampled_rows(ids: Sequence[str], of: int) -> list[int]:
    """The rows of the chosen samples of a part, as `sampled_scores` has them."""
    limit = (1 << 32) * SAMPLED // max(of, SAMPLED)
    return [row for row, sample in enumerate(ids) if crc32(sample.encode()) < limit]


def rank_correlation(first: Mapping[str, float], second: Mapping[str, float]) -> RankCorrelation | None:
    """The rank correlation of two columns of scores over the samples that both have; equal scores share a rank.

    None if both have fewer than `FEWEST` samples, or one has equal scores only.
    """
    both = sorted(first.keys() & second.keys())
    if len(both) < FEWEST:
        return None
    ranks = [_ranks(np.array([column[sample] for sample in both])) for column in (first, second)]
    if any(np.ptp(own) == 0 for own in ranks):
        return None
    return RankCorrelation(float(np.corrcoef(np.stack(ranks))[0, 1]), len(both))


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1; equal values have the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
