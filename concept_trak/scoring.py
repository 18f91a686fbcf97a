"""Scores w_i phi_i . z_q, and what is kept of them: the best and worst m per query, and a histogram, both streamed.

n samples of one block, m queries, k features. A score is never held for all samples at once.
"""

import heapq
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Entry = tuple[float, str, str]  # score, sample id, where it lies


def scores(phi: Float[Tensor, "n k"], weight: Float[Tensor, " n"], z: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    """score[i, q] = w_i phi_i . z_q, in float32."""
    return weight[:, None] * (phi @ z.T)


@dataclass
class TopK:
    """The best and the worst m entries of everything added so far; ties are ordered by sample id. `+` merges two.

    `top` runs from the best down, `bottom` from the worst up. The result does not depend on how the samples were split.
    """

    m: int
    top: list[Entry] = field(default_factory=list)
    bottom: list[Entry] = field(default_factory=list)

    def add(self, entries: list[Entry]) -> None:
        self.top = heapq.nsmallest(self.m, self.top + entries, key=lambda e: (-e[0], e[1]))
        self.bottom = heapq.nsmallest(self.m, self.bottom + entries, key=lambda e: (e[0], e[1]))

    def __add__(self, other: "TopK") -> "TopK":
        merged = TopK(self.m, self.top, self.bottom)
        merged.top = heapq.nsmallest(self.m, self.top + other.top, key=lambda e: (-e[0], e[1]))
        merged.bottom = heapq.nsmallest(self.m, self.bottom + other.bottom, key=lambda e: (e[0], e[1]))
        return merged


BINS = 80
SPAN = 6.0  # the histogram reaches this many root mean squares of the score to either side of 0


def bins(values: Float[Tensor, " n"], scale: float) -> list[int]:
    """Counts in BINS equal bins over [-SPAN, SPAN] * scale; what lies outside is counted in the outermost bins."""
    if scale <= 0:
        scale = 1.0
    index = ((values / scale + SPAN) * (BINS / (2 * SPAN))).floor().clamp(0, BINS - 1)
    return torch.bincount(index.to(torch.int64), minlength=BINS).tolist()


def spread(z: Float[Tensor, " k"], matrix: Float[Tensor, "k k"], count: int) -> float:
    """Root mean square of the unweighted scores, sqrt(z^T K z / n): known before a single sample is scored."""
    z, matrix = z.double(), matrix.double()
    return (z @ matrix @ z / max(1, count)).clamp_min(0).sqrt().item()
