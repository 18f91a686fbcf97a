"""Scores w_i phi_i . z_q, their streamed summary (the best and worst m, and a histogram), and measures of a ranking.

n samples of one block, m queries, k features, c columns of scores. The scores of all samples are never in memory at
once. The measures grade how well a ranking finds the samples that show a concept.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Num
from torch import Tensor

Entry = tuple[float, str, str]  # score, sample id, shard
WIDE_BYTES = 2 << 20  # bytes of float32 rows that are still in the cache when they are multiplied
QUERY_ROWS = 8  # queries of `transposed_products`: with other numbers, MKL's threads round a few of them in another way


def scores(phi: Float[Tensor, "n k"], weight: Float[Tensor, " n"], z: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    """score[i, q] = w_i phi_i . z_q, in float32."""
    return weight[:, None] * (phi @ z.T)


def stored_scores(
    unit: Num[Tensor, "n k"], factor: Float32[Tensor, " n"], z: Float32[Tensor, "m k"], out: Float32[Tensor, "n m"]
) -> None:
    """`scores` of stored rows phi_i = scale_i unit_i, written into `out`, with factor_i = w_i scale_i."""
    stored_products(unit, factor, [(z, out)])


def stored_products(
    unit: Num[Tensor, "n k"], factor: Float32[Tensor, " n"], products: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """`stored_scores` with several matrices of queries, for which each row is widened once.

    A few rows at a time are widened to float32 in one buffer, because a copy of all rows would be written to memory and
    read again. The factor multiplies the m scores of a row, not its k features. Each matrix has a product of its own,
    because a product with more columns rounds the same column in another way.

    Args:
        unit: the stored rows.
        factor: the factor of each row.
        products: pairs of queries, float32 [m, k], and where their scores are written, float32 [n, m].
    """
    rows = _wide_rows(unit.shape[1])
    across = [(z.T.contiguous(), out) for z, out in products]  # a sixth faster than the view
    buffer = torch.empty(min(rows, len(unit)), unit.shape[1])
    for first in range(0, len(unit), rows):
        block = unit[first : first + rows]
        wide = block if block.dtype == torch.float32 else buffer[: len(block)].copy_(block)
        for z, out in across:
            torch.mm(wide, z, out=out[first : first + rows])
    for _, out in products:
        out.mul_(factor[:, None])


def transposed_products(
    unit: Num[Tensor, "n k"], factor: Float32[Tensor, " n"], z: Float32[Tensor, "m k"], out: Float32[Tensor, "m n"]
) -> None:
    """`stored_scores` transposed: out[q, i] = factor_i z_q . unit_i, in one product of all queries.

    For a few queries it takes a third of the time of `stored_scores`, whose narrow products are slow, and rounds in
    another way. With MKL on AVX-512 the scores of a query do not depend on the other ones, because each product has a
    multiple of `QUERY_ROWS` queries and the same number of samples.

    Args:
        unit: the stored rows.
        factor: the factor of each row.
        z: the queries; their number is a multiple of `QUERY_ROWS`.
        out: where the scores are written.
    """
    rows = _wide_rows(unit.shape[1])
    buffer, products = torch.zeros(rows, unit.shape[1]), torch.empty(len(z), rows)
    for first in range(0, len(unit), rows):
        block = unit[first : first + rows]
        buffer[: len(block)].copy_(block)
        torch.mm(z, buffer.T, out=products)
        torch.mul(products[:, : len(block)], factor[first : first + rows], out=out[:, first : first + rows])


def _wide_rows(k: int) -> int:
    """How many rows are widened at a time."""
    return max(64, WIDE_BYTES // (4 * k))


@dataclass
class TopK:
    """The best and the worst m of all entries added so far; ties are ordered by sample id. `+` merges two.

    `top` has the best first, `bottom` the worst first. The result does not depend on how the samples were split.
    """

    m: int
    top: list[Entry] = field(default_factory=list)
    bottom: list[Entry] = field(default_factory=list)

    def add_best(self, entries: list[Entry]) -> None:
        if entries:
            self.top = sorted(self.top + entries, key=lambda e: (-e[0], e[1]))[: self.m]

    def add_worst(self, entries: list[Entry]) -> None:
        if entries:
            self.bottom = sorted(self.bottom + entries, key=lambda e: (e[0], e[1]))[: self.m]

    def __add__(self, other: "TopK") -> "TopK":
        merged, best, worst = TopK(self.m, self.top, self.bottom), other.top, other.bottom
        # Of most parts no entry reaches the ends of many others, which its first entry shows.
        if len(self.top) == self.m:
            best = list(takewhile(lambda e: e[0] >= self.top[-1][0], best))
        if len(self.bottom) == self.m:
            worst = list(takewhile(lambda e: e[0] <= self.bottom[-1][0], worst))
        merged.add_best(best)
        merged.add_worst(worst)
        return merged


BINS = 80
SPAN = 6.0  # the histogram reaches this many root mean squares of the score to either side of 0
BINNED = 1024  # rows counted at a time, so that their indices stay in the cache


def histograms(values: Float[Tensor, "n c"], scale: Float[Tensor, " c"]) -> Int64[Tensor, "c bins"]:
    """Counts of every column in BINS equal bins over [-SPAN, SPAN] * scale; the outermost bins include all beyond."""
    step, columns = BINS / (2 * SPAN) / torch.where(scale > 0, scale, 1.0), values.shape[1]
    total, offset = torch.zeros(columns * BINS, dtype=torch.int64), torch.arange(columns) * BINS
    middle = torch.tensor(BINS / 2, dtype=values.dtype)
    for block in values.split(BINNED):
        index = torch.addcmul(middle, block, step).clamp_(0, BINS - 1).to(torch.int64)  # rounds down: none is negative
        total += torch.bincount(index.add_(offset).reshape(-1), minlength=len(total))
    return total.view(columns, BINS)


class SampleRows:
    """The id and the shard of each row, for rows that come in blocks. A row costs nothing but its block's own list."""

    def __init__(self) -> None:
        self._blocks, self._starts, self._count = list[tuple[Sequence[str], str]](), list[int](), 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> tuple[str, str]:
        block = bisect_right(self._starts, row) - 1
        ids, shard = self._blocks[block]
        return ids[row - self._starts[block]], shard

    def add(self, ids: Sequence[str], shard: str) -> None:
        """Add the next rows, which are of one shard."""
        self._blocks.append((ids, shard))
        self._starts.append(self._count)
        self._count += len(ids)


class ScoreSummary:
    """The ends and the histogram of c columns of scores, which come in blocks.

    Only the scores that are among the ends at last become Python objects.

    Args:
        m: entries kept at each end.
        scale: the root mean square of each column.
    """

    def __init__(self, m: int, scale: Sequence[float]) -> None:
        self.histogram = torch.zeros(len(scale), BINS, dtype=torch.int64)
        self.samples = SampleRows()
        self._m, self._scale = m, torch.tensor(scale)
        self._best, self._worst = BestRows(m, len(scale)), BestRows(m, len(scale))

    def add(self, values: Float32[Tensor, "n c"], ids: Sequence[str], where: str) -> None:
        self.histogram += histograms(values, self._scale)
        self._best.add(values, len(self.samples))
        self._worst.add(-values, len(self.samples))
        self.samples.add(ids, where)

    def ends(self) -> list[TopK]:
        """The best and the worst entries of each column."""
        return [ends for ends, _ in self.ends_and_rows()]

    def ends_and_rows(self) -> list[tuple[TopK, dict[str, int]]]:
        """The best and the worst entries of each column, and by sample id the number of their rows."""
        result = []
        for best, worst in zip(self._best.entries(), self._worst.entries(), strict=True):
            samples = {row: self.samples[row] for row in sorted({row for _, row in (*best, *worst)})}
            ends = TopK(self._m)
            ends.add_best([(value, *samples[row]) for value, row in best])
            ends.add_worst([(-value, *samples[row]) for value, row in worst])
            rows = {sample: row for row, (sample, _) in samples.items()}
            result.append((ends, {entry[1]: rows[entry[1]] for entry in (*ends.top, *ends.bottom)}))
        return result


class BestRows:
    """The rows of c columns that can be among the m best, with ties of the m-th; rows come in blocks."""

    def __init__(self, m: int, columns: int) -> None:
        self._values = torch.full((m, columns), -torch.inf)  # the m best so far, in order
        nothing = torch.zeros(0, dtype=torch.int64)
        self._candidates = [(nothing, nothing, torch.zeros(0))]  # column, row, value

    def add(self, values: Float32[Tensor, "n c"], first: int) -> None:
        """Add the next rows. `first` is the number of the first of them among all rows."""
        reaching = self._reaching(values)
        columns, rows = reaching.T.nonzero(as_tuple=True)
        candidates = values[rows, columns]
        self._candidates.append((columns, rows + first, candidates))
        counts = reaching.sum(0)
        padded = torch.full((int(counts.max()), len(counts)), -torch.inf)
        padded[torch.arange(len(candidates)) - (counts.cumsum(0) - counts)[columns], columns] = candidates
        self._values = torch.cat([self._values, padded]).topk(len(self._values), dim=0).values

    def entries(self) -> Iterator[list[tuple[float, int]]]:
        """(value, row) of each column."""
        columns, rows, values = (torch.cat(blocks) for blocks in zip(*self._candidates, strict=True))
        best = (values >= self._values[-1][columns]).nonzero()[:, 0]
        best = best[columns[best].argsort(stable=True)]
        pairs = list(zip(values[best].tolist(), rows[best].tolist(), strict=True))
        ends = columns[best].bincount(minlength=self._values.shape[1]).cumsum(0).tolist()
        return (pairs[start:end] for start, end in pairwise([0, *ends]))

    def _reaching(self, values: Float32[Tensor, "n c"]) -> Bool[Tensor, "n c"]:
        """Whether a value is at least the m-th best so far, and if many are, at least the m-th best of this block."""
        m, columns = self._values.shape
        best = values >= self._values[-1]
        if int(best.count_nonzero()) > 2 * m * columns:
            best &= values >= values.topk(m, dim=0).values[-1]
        return best


def score_rms(z: Float[Tensor, " k"], matrix: Float[Tensor, "k k"], count: int) -> float:
    """Root mean square of the unweighted scores, sqrt(z^T K z / n), which needs no pass over the samples."""
    z, matrix = z.double(), matrix.double()
    return (z @ matrix @ z / max(1, count)).clamp_min(0).sqrt().item()


def precision_at(relevant: Sequence[bool], k: int) -> float:
    """Share of the first k samples that show the concept; of all samples if there are fewer."""
    head = relevant[:k]
    return sum(head) / max(1, len(head))


def average_precision(relevant: Sequence[bool]) -> float:
    """AP = mean over relevant ranks r of precision@r; 0 when nothing is relevant.

    The expected value of a random order is about the base rate.
    """
    hits = np.asarray(relevant, dtype=np.float64)
    ranks = np.flatnonzero(hits)
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).mean()) if len(ranks) else 0.0


def base_rate(relevant: Sequence[bool]) -> float:
    """Share of all samples that show the concept, which is the expected precision of a random order."""
    return sum(relevant) / max(1, len(relevant))


def recall_at_carriers(relevant: Sequence[bool]) -> float:
    """Recall among the first n samples, where n is the number of samples that show the concept (carriers)."""
    return precision_at(relevant, sum(relevant))


def recall_at(relevant: Sequence[bool], carriers: int, k: int) -> float:
    """Share of the first k that show the concept, relative to the most that are possible, min(k, carriers)."""
    return sum(relevant[:k]) / max(1, min(k, carriers))
