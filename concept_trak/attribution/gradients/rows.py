"""Whose row is whose: the sample that each row of a layer's call belongs to, where there are more rows than samples.

Some networks join samples along the first dimension before a layer, also samples of unequal length, such as the
captions of Z-Image. The number of rows does not show where one sample ends, so it is measured. The backward pass is
linear in v, and each sample's rows get their gradient from its own v alone. With v_i times 2^(d_i), the gradient of
each row is multiplied by 2^(d_i) of its sample i, without rounding. A row that several samples share has no such power.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from concept_trak.attribution.numerics import at_least_float32

BASE = 16  # the powers of one pass; a batch of up to 16 samples takes one pass, up to 256 two
MIDDLE = BASE // 2
# The largest relative difference of a row from its gradient times a power of two. It is 0 where a kernel adds in one
# order; a row that two samples share in equal parts differs by a third at least.
DIFFERENCE, ROUNDINGS = 0.1, 1000
NO_SAMPLE = -1


def row_samples(
    output: Float[Tensor, "..."],
    v: Float[Tensor, "b ..."],
    calls: Sequence[Float[Tensor, "..."]],
    gradients: Sequence[Float[Tensor, "..."]],
    keep_graph: bool,
) -> list[Int64[Tensor, " rows"] | None]:
    """The sample of each row of some tensors, at the cost of one backward pass for every 4 bits of b.

    Args:
        output: of the network, with the graph that leads to `calls`.
        v: the vector that was pulled back.
        calls: tensors of the graph, [rows, ...] each.
        gradients: the gradient at each of them, from v.
        keep_graph: whether the graph is needed afterwards.

    Returns:
        For each tensor the numbers of the samples, `NO_SAMPLE` where a row's gradient is 0; None if rows are shared.
    """
    b, place = len(v), 1
    samples = [torch.zeros(len(g), dtype=torch.int64, device=g.device) for g in gradients]
    whole = [torch.ones(len(g), dtype=torch.bool, device=g.device) for g in gradients]
    while place < b:
        digits = torch.arange(b, device=v.device) // place % BASE
        scaled = v * torch.exp2((digits - MIDDLE).to(v.dtype)).reshape(-1, *[1] * (v.dim() - 1))
        last = place * BASE >= b
        slopes = torch.autograd.grad(output, list(calls), scaled, retain_graph=keep_graph or not last)
        for j, (g, slope) in enumerate(zip(gradients, slopes, strict=True)):
            digit, fits = _digits(g, slope)
            samples[j] += place * digit
            whole[j] &= fits
        place *= BASE
    results: list[Tensor | None] = []
    for g, own, fits in zip(gradients, samples, whole, strict=True):
        zero = _lengths(g) == 0
        fits = fits & (own < b) | zero
        results.append(torch.where(zero, NO_SAMPLE, own) if bool(fits.all()) else None)
    return results


def _digits(g: Tensor, slope: Tensor) -> tuple[Int64[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """The power of each row, from 0, and whether the row is its gradient times that power."""
    power = (_lengths(slope) / _lengths(g)).log2().round()
    usable = power.isfinite() & (power >= -MIDDLE) & (power < BASE - MIDDLE)
    power = torch.where(usable, power, 0)
    expected = at_least_float32(g).flatten(1) * power.exp2()[:, None]
    allowed = min(DIFFERENCE, ROUNDINGS * torch.finfo(g.dtype).eps)
    difference = _lengths(at_least_float32(slope).flatten(1) - expected)
    return power.long() + MIDDLE, usable & (difference <= allowed * _lengths(slope))


def _lengths(rows: Tensor) -> Float[Tensor, " rows"]:
    """The norm of each row; 0 where it is so small that its multiples are rounded."""
    norms = at_least_float32(rows).flatten(1).norm(dim=1)
    return torch.where(norms < torch.finfo(norms.dtype).tiny * 2**32, 0, norms)


@dataclass(frozen=True)
class RowOrder:
    """m rows for each sample, the samples one after another.

    Attributes:
        index: the number of each row.
        real: False at rows that only fill up a sample with fewer than m, and that are to be ignored.
    """

    index: Int64[Tensor, " bm"]
    real: Bool[Tensor, " bm"]

    def gradient(self, g: Float[Tensor, "rows ..."]) -> Float[Tensor, "bm ..."]:
        """The gradients of the rows; 0 at those to be ignored."""
        return g[self.index] * self.real.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1))


def row_order(samples: Int64[Tensor, " rows"], b: int) -> RowOrder | None:
    """The order that puts each sample's rows together; None if they are so already, as many for each sample."""
    rows = len(samples)
    if rows % b == 0:
        regular = torch.arange(rows, device=samples.device) // (rows // b)
        if bool(((samples == regular) | (samples == NO_SAMPLE)).all()):
            return None
    counts = torch.bincount(samples[samples != NO_SAMPLE], minlength=b)
    index = samples.new_zeros(b, max(1, int(counts.max())))
    for i in range(b):
        own = (samples == i).nonzero().flatten()
        index[i, : len(own)] = own
    real = torch.arange(index.shape[1], device=samples.device) < counts[:, None]
    return RowOrder(index.flatten(), real.flatten())
