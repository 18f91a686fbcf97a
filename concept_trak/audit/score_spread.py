"""How far other samples of a query would change its damped scores, from the scores of its groups of samples.

n training samples of a task, g groups of one query, k features.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float32
from torch import Tensor

from concept_trak.attribution.ranking import SPAN, BestRows, SampleRows, TopK
from concept_trak.attribution.uncertainty import mean_correlation, rank_interval, reliability, score_intervals


@dataclass(frozen=True)
class QuerySpread:
    """The spread of one column of damped scores over some shards.

    Let a and b be the scores by the first and the second half of the groups.

    Attributes:
        groups: by sample id, for samples at the ends, the score by each group.
        halves: the best entries by a and by b.
        moments: over the samples, the sums of the products of (1, x_1 ... x_g) with itself, x_j the score by group j;
            row by row.
        noise: the largest |a - b| / 2. A query of noise with the variance of this one's would give such scores.
        reach: half the range of the column's histogram.
    """

    groups: dict[str, tuple[float, ...]]
    halves: tuple[TopK, TopK]
    moments: tuple[float, ...]
    noise: float
    reach: float

    def merged(self, other: "QuerySpread", samples: Collection[str]) -> "QuerySpread":
        """Both, with the groups of these samples."""
        groups = {sample: values for sample, values in (self.groups | other.groups).items() if sample in samples}
        first, second = (mine + theirs for mine, theirs in zip(self.halves, other.halves, strict=True))
        moments = tuple(x + y for x, y in zip(self.moments, other.moments, strict=True))
        return QuerySpread(
            groups=groups,
            halves=(first, second),
            moments=moments,
            noise=max(self.noise, other.noise),
            reach=self.reach,
        )

    def interval(self, sample: str, score: float) -> tuple[float, float]:
        """The 90 % interval of a sample's score."""
        interval = score_intervals(torch.tensor([self.groups[sample]], dtype=torch.float64))
        reach = (interval.high - interval.mean).item()
        return score - reach, score + reach

    def ranks(
        self, interval: tuple[float, float], rank: int, best: Sequence[float], counts: Sequence[int]
    ) -> tuple[int, int]:
        """The ranks of both ends of an interval, the better one first."""
        return rank_interval(interval, rank, best, counts, self.reach)

    @property
    def reliability(self) -> float:
        """How much of the variance of the scores is not noise, from the mean correlation between two groups.

        All pairs count: one division into halves can put what differs between the groups on both sides.
        """
        size = math.isqrt(len(self.moments))
        sums = torch.tensor(self.moments, dtype=torch.float64).view(size, size)
        covariance = sums[1:, 1:] - sums[1:, :1] * sums[:1, 1:] / sums[0, 0]
        spread = covariance.diagonal().clamp_min(0).sqrt()
        products = spread[:, None] * spread
        return reliability(mean_correlation(torch.where(products > 0, covariance / products, 0.0)), size - 1)


@dataclass(frozen=True)
class Certainty:
    """How far the top of a ranking can be relied on.

    Attributes:
        reliability: of the scores, in [0, 1]; below 1/2, more of their variance is noise than is not.
        of: the number of samples at the top that the other fields count.
        shared: how many of them are in the top by one half of the query's samples and in that by the other half.
        by_chance: how many two random orders would share.
        above_noise: how many have a score above all scores that noise of the query's size would give.
    """

    reliability: float
    of: int
    shared: int
    by_chance: float
    above_noise: int


def certainty(spread: QuerySpread, top: Sequence[float], of: int) -> Certainty:
    """The certainty of the first `of` samples; `top` are the best scores."""
    n = int(spread.moments[0])
    of = min(of, len(top))
    first, second = ({entry[1] for entry in half.top[:of]} for half in spread.halves)
    return Certainty(
        reliability=spread.reliability,
        of=of,
        shared=len(first & second),
        by_chance=of * of / n,
        above_noise=sum(score > spread.noise for score in top[:of]),
    )


class GroupSummary:
    """The scores of the samples of a task by the groups of some queries; rows come in blocks.

    Args:
        m: entries kept at the top of each half.
        z: by query, the solutions of its groups; None for a query that is not divided.

    Attributes:
        z: the solutions of all groups, which every row is multiplied with; None without any.
    """

    def __init__(self, m: int, z: Sequence[Float32[Tensor, "_ k"] | None]) -> None:
        sizes = [0 if own is None else len(own) for own in z]
        self._m, self._columns = m, list(pairwise(accumulate(sizes, initial=0)))
        divided = [own for own in z if own is not None]
        self.z = torch.cat(divided) if divided else None
        self._values = list[Tensor]()

    def add(self, values: Float32[Tensor, "n g"]) -> None:
        """Add the scores of the next rows by all groups."""
        self._values.append(values)

    def spreads(
        self, rows: Sequence[Mapping[str, int]], scale: Sequence[float], samples: SampleRows
    ) -> list[QuerySpread | None]:
        """The spread of each query's damped scores.

        Args:
            rows: by query, the rows of the samples at its ends, by their ids.
            scale: by query, the root mean square of its scores.
            samples: the samples of the rows.
        """
        if not self._values:
            return [None] * len(rows)
        values = torch.cat(self._values)
        return [
            self._spread(values[:, first:last], own, SPAN * spread, samples) if last > first else None
            for (first, last), own, spread in zip(self._columns, rows, scale, strict=True)
        ]

    def _spread(
        self, values: Float32[Tensor, "n g"], rows: Mapping[str, int], reach: float, samples: SampleRows
    ) -> QuerySpread:
        halves = torch.stack([values[:, 0::2].mean(1), values[:, 1::2].mean(1)], 1)
        a, b = halves.double().T
        with_one = torch.cat([torch.ones(len(values), 1, dtype=torch.float64), values.double()], 1)
        return QuerySpread(
            groups={sample: tuple(values[row].tolist()) for sample, row in rows.items()},
            halves=self._best(halves, samples),
            moments=tuple((with_one.T @ with_one).flatten().tolist()),
            noise=float((a - b).abs().max() / 2),
            reach=reach,
        )

    def _best(self, halves: Float32[Tensor, "n 2"], samples: SampleRows) -> tuple[TopK, TopK]:
        best = BestRows(self._m, 2)
        best.add(halves, 0)
        first, second = (TopK(self._m), TopK(self._m))
        for half, rows in zip((first, second), best.entries(), strict=True):
            half.add_best([(value, samples[row][0], "") for value, row in rows])
        return first, second
