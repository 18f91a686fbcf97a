"""The per-sample weight gradient of a convolution, kept as its input and the gradient at its output.

    G = sum_p g_p patch_p^T        patch_p: the inputs under the kernel at position p

Letters: b samples of n / b rows each, o outputs, i inputs, a kernel of k l, P padded pixels, p positions.

G or its norm can be computed in four ways. The costs below were measured on one core of a CPU for 16 samples, in units
of the plain gradient of the weight:

- G by one grouped convolution, with the samples as groups: about 1, but 1.5 for few positions and 5 for few outputs.
- G by patches that are copied from a padded input with channels last, a few samples at a time so that they fit into
  the cache: 1 for 8 x 8 positions, 2 for 32 x 32. The result has its channels last.
- G by patches of the output's gradient, for few outputs, whose patches are narrow: G_{o, i, d} = sum_q x_{i, q}
  g_{o, q - d} is the gradient of a convolution with x and g exchanged and the kernel reversed. Needs a stride of 1.
- The norm without G, from the Gram matrix G_x of padded pixels: <patch_p, patch_q> = sum_d G_x[p + d, q + d] over the
  offsets d of the kernel: 1/2 to 1/3 for 8 x 8 positions and 64 to 128 channels. It costs P^2 i + p^2 o multiply-adds
  and (k + l) P p strided additions. G costs p o i k l.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.grad import conv2d_weight

from concept_trak.attribution.gradients.factors import GATHERED, DenseGradient
from concept_trak.attribution.numerics import at_least_float32

# Costs in multiply-adds of a matrix product: of one addition of strided numbers, and of copying one number to a patch.
ADDITION, COPIED = 8, 32
FEW_POSITIONS, FEW_OUTPUTS = 100, 4  # with at most this many of either, patches are faster than groups
PATCH_NUMBERS = 1 << 19  # numbers in patches at a time: 2 MB, about what the cache of a core holds


@dataclass(frozen=True)
class Conv2dGradient:
    """The gradient of a weight of `shape` [o, i / groups, k, l]."""

    x: Float[Tensor, "n i h w"]
    g: Float[Tensor, "n o y z"]
    b: int
    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def norm_is_cheaper_in_factors(self) -> bool:
        (o, i, k, m), (h, w), positions = self.shape, self._padded_size(), self.g[0, 0].numel()
        apart = (h * w) ** 2 * i + positions**2 * o + ADDITION * (k + m) * h * w * positions
        return self.groups == 1 and len(self.x) == self.b and apart < positions * self.shape.numel()

    @property
    def by_patches(self) -> bool:
        """Whether G is cheaper by patches than by a grouped convolution."""
        few = self.g[0, 0].numel() <= FEW_POSITIONS or self.shape[0] <= FEW_OUTPUTS
        return self.groups == 1 and few and not self.by_output_patches

    @property
    def by_output_patches(self) -> bool:
        """Whether the outputs are few and G can be computed with x and g exchanged."""
        few = self.groups == 1 and self.shape[0] <= FEW_OUTPUTS and self.stride == (1, 1)
        return few and min(self._exchanged_padding()) >= 0

    def dense(self) -> Float[Tensor, "b o i k l"]:
        if self.by_output_patches:
            return self._exchanged()._by_patches().flip(3, 4).transpose(1, 2)
        return self._by_patches() if self.by_patches else self._by_groups()

    def _by_patches(self) -> Float[Tensor, "b o i k l"]:
        out = self._channels_last(self.g.new_empty(self.b * self.shape.numel()))
        self._multiply(out, None, overwrite=True)
        return out

    def squared_norm(self) -> Float[Tensor, " b"]:
        if not self.norm_is_cheaper_in_factors:
            return DenseGradient(self.dense()).squared_norm()
        x, g = at_least_float32(self._padded()).flatten(1, 2), at_least_float32(self.g).flatten(2)
        patch_gram = self._patch_gram(torch.bmm(x, x.transpose(1, 2)))
        return torch.linalg.vecdot(patch_gram.flatten(1), torch.bmm(g.transpose(1, 2), g).flatten(1))

    def as_sum(self, memory: Float[Tensor, " numbers"]) -> Float[Tensor, "b o i k l"]:
        return self._channels_last(memory) if self.by_patches else memory.view(self.b, *self.shape)

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], overwrite: bool = False) -> None:
        """Add each sample's G times its factor; patches are multiplied directly into a total with channels last."""
        if self.by_patches and total.permute(0, 1, 3, 4, 2).is_contiguous():
            self._multiply(total, factor, overwrite)
        else:
            DenseGradient(self.dense()).add_to(total, factor, overwrite)

    def entries(self, at: Int64[Tensor, " entries"]) -> Float[Tensor, "b entries"]:
        """The entries at the flat positions `at`; a few are gathered from the factors without forming G."""
        outputs, inputs, k, m = self.shape
        if self.groups > 1 or GATHERED * len(at) > (outputs - COPIED) * inputs * k * m:
            return DenseGradient(self.dense()).entries(at)
        o, column = at // (inputs * k * m), at % (k * m) * inputs + at // (k * m) % inputs
        return torch.cat(
            [
                (at_least_float32(g)[:, o] * at_least_float32(patches)[:, :, column].transpose(1, 2)).sum(2)
                for _, g, patches in self._factors()
            ]
        )

    def two_sided(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right. The product with `right` is a convolution with c filters, so no patch is copied."""
        if self.groups > 1:
            return DenseGradient(self.dense()).two_sided(left, right)
        filters = right.T.reshape(-1, *self.shape[1:])
        filtered = F.conv2d(at_least_float32(self.x), filters, None, self.stride, self.padding, self.dilation)
        narrow = left.T @ at_least_float32(self.g).flatten(2)
        return torch.bmm(self._by_sample(narrow), self._by_sample(filtered.flatten(2)).transpose(1, 2))

    def _channels_last(self, memory: Float[Tensor, " numbers"]) -> Float[Tensor, "b o i k l"]:
        o, i, k, m = self.shape
        return memory.view(self.b, o, k, m, i).permute(0, 1, 4, 2, 3)

    def _exchanged_padding(self) -> tuple[int, ...]:
        """Padding of g so that each pixel of x has its outputs under the kernel."""
        sides = zip(self.shape[2:], self.dilation, self.padding, strict=True)
        return tuple((size - 1) * apart - padding for size, apart, padding in sides)

    def _exchanged(self) -> "Conv2dGradient":
        """The convolution of g by x, whose gradient is G with inputs for outputs and the kernel reversed."""
        o, i, k, m = self.shape
        padding, shape = self._exchanged_padding(), torch.Size((i, o, k, m))
        return replace(self, x=self.g, g=self.x, shape=shape, padding=padding)

    def _by_groups(self) -> Float[Tensor, "b o i k l"]:
        x, g = (y.unflatten(0, (self.b, -1)).transpose(0, 1).flatten(1, 2) for y in (self.x, self.g))
        size: Any = (self.b * self.shape[0], *self.shape[1:])
        # conv2d_weight is annotated with int but accepts pairs.
        pairs: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return conv2d_weight(x, size, g, groups=self.b * self.groups, **pairs).view(self.b, *self.shape)

    def _multiply(self, total: Tensor, factor: Tensor | None, overwrite: bool) -> None:
        """Add each sample's G times its factor to `total`, whose channels are last in memory."""
        matrix = total.permute(0, 1, 3, 4, 2).flatten(2)
        for rows, g, patches in self._factors():
            scaled = g if factor is None else at_least_float32(g) * factor[rows].to(total.dtype)[:, None, None]
            matrix[rows].baddbmm_(scaled, patches.to(scaled.dtype), beta=0 if overwrite else 1)

    def _by_sample(self, rows: Float[Tensor, "n c p"]) -> Float[Tensor, "b c mp"]:
        return rows.unflatten(0, (self.b, -1)).transpose(1, 2).flatten(2)

    def _padded_size(self) -> tuple[int, int]:
        return self.x.shape[2] + 2 * self.padding[0], self.x.shape[3] + 2 * self.padding[1]

    def _padded(self) -> Float[Tensor, "n h w i"]:
        """The input with zeros around it and its channels last."""
        (n, i, h, w), (top, side) = self.x.shape, self.padding
        padded = self.x.new_zeros(n, *self._padded_size(), i)
        padded[:, top : top + h, side : side + w] = self.x.permute(0, 2, 3, 1)
        return padded

    def _factors(self) -> Iterator[tuple[slice, Float[Tensor, "s o p"], Float[Tensor, "s p kli"]]]:
        """A few samples at a time: their rows, their output gradients and their patches."""
        x, g, (_, i, k, m), (y, z) = self._padded(), self._by_sample(self.g.flatten(2)), self.shape, self.g.shape[2:]
        each, (row, down, right, _) = len(x) // self.b, x.stride()
        steps = (self.stride[0] * down, self.stride[1] * right, self.dilation[0] * down, self.dilation[1] * right, 1)
        step = max(1, PATCH_NUMBERS // (each * y * z * k * m * i)) if x.device.type == "cpu" else self.b
        for start in range(0, self.b, step):
            chunk = x[start * each : (start + step) * each]
            patches = chunk.as_strided((len(chunk), y, z, k, m, i), (row, *steps), chunk.storage_offset())
            rows = slice(start, start + len(chunk) // each)
            yield rows, g[rows], patches.reshape(len(chunk) // each, each * y * z, k * m * i)

    def _patch_gram(self, gram: Float[Tensor, "b P P"]) -> Float[Tensor, "b y z y z"]:
        """The Gram matrix of patches, summed from the Gram matrix of padded pixels over one kernel axis at a time."""
        gram = gram.view(-1, *self._padded_size(), *self._padded_size())
        gram = _sum(gram[:, pixels, :, pixels] for pixels in self._pixels_under_kernel(0))
        return _sum(gram[:, :, pixels, :, pixels] for pixels in self._pixels_under_kernel(1))

    def _pixels_under_kernel(self, side: int) -> Iterator[slice]:
        """For each offset of the kernel along a side, the padded pixels at this offset from every position."""
        reach = self.stride[side] * (self.g.shape[2 + side] - 1) + 1
        for first in range(0, self.shape[2 + side] * self.dilation[side], self.dilation[side]):
            yield slice(first, first + reach, self.stride[side])


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts).clone(memory_format=torch.contiguous_format)
    for part in parts:
        total += part
    return total
