"""A convolution's per-sample weight gradient, kept as what it is made of: its input, and the gradient at its output.

    G = sum_p g_p patch_p^T        patch_p: what the kernel sees at place p

Letters: b samples of n / b rows each, o outputs, i inputs, a kernel of k l, P padded pixels, p places. There are three
ways to what is asked of it; measured on one core of a CPU for 16 samples, beside the plain gradient of the weight:

- One convolution whose groups are the samples: about as fast as the plain one, but half again dearer where there are
  few places, and five times where there are few outputs.
- Patches, copied out of a padded input whose channels lie together, a few samples at a time, so that they are in the
  cache when they are multiplied: the plain one's price for 8 x 8 places, twice that for 32 x 32. Channels lie last.
- The norm without a matrix, from the Gram G_x of padded pixels, <patch_p, patch_q> = sum_d G_x[p + d, q + d] over the
  kernel's offsets d: half to a third of the plain one's price for 8 x 8 places and 64 to 128 channels. It costs
  P^2 i + p^2 o multiply-adds and (k + l) P p strided additions, against p o i k l by the matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_weight

from concept_trak.attribution.gradients.factors import GATHERED, DenseGradient
from concept_trak.attribution.numerics import at_least_float32

# Multiply-adds of a matrix product that take as long as one addition of strided numbers, and one number in a patch.
ADDITION, COPIED = 8, 32
FEW_PLACES, FEW_OUTPUTS = 100, 4  # up to which patches are faster than groups
AT_A_TIME = 1 << 19  # numbers in patches: 2 MB, about what a core's cache holds


@dataclass(frozen=True)
class Conv2dGradient:
    """Of a weight of `shape` [o, i / groups, k, l]."""

    x: Float[Tensor, "n i h w"]
    g: Float[Tensor, "n o y z"]
    b: int
    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def cheaper_apart(self) -> bool:
        """Whether the norm is cheaper by the factors than by the matrix."""
        (o, i, k, m), (h, w), places = self.shape, self._wider(), self.g[0, 0].numel()
        apart = (h * w) ** 2 * i + places**2 * o + ADDITION * (k + m) * h * w * places
        return self.groups == 1 and len(self.x) == self.b and apart < places * self.shape.numel()

    @property
    def by_patches(self) -> bool:
        """Whether the matrix is cheaper by patches than by groups."""
        return self.groups == 1 and (self.g[0, 0].numel() <= FEW_PLACES or self.shape[0] <= FEW_OUTPUTS)

    def whole(self) -> Float[Tensor, "b o i k l"]:
        if not self.by_patches:
            return self._grouped()
        out = self.lay(self.g.new_empty(self.b * self.shape.numel()))
        self._multiply(out, None, first=True)
        return out

    def square_norm(self) -> Float[Tensor, " b"]:
        if not self.cheaper_apart:
            return DenseGradient(self.whole()).square_norm()
        x, g = at_least_float32(self._padded()).flatten(1, 2), at_least_float32(self.g).flatten(2)
        seen = self._along_kernel(torch.bmm(x, x.transpose(1, 2)))
        return torch.linalg.vecdot(seen.flatten(1), torch.bmm(g.transpose(1, 2), g).flatten(1))

    def lay(self, room: Float[Tensor, " numbers"]) -> Float[Tensor, "b o i k l"]:
        o, i, k, m = self.shape
        if self.by_patches:
            return room.view(self.b, o, k, m, i).permute(0, 1, 4, 2, 3)
        return room.view(self.b, *self.shape)

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], first: bool = False) -> None:
        """Where the total was laid for it, patches are multiplied straight into it."""
        if self.by_patches and total.permute(0, 1, 3, 4, 2).is_contiguous():
            self._multiply(total, factor, first)
        else:
            DenseGradient(self.whole()).add_to(total, factor, first)

    def entries(self, at: Tensor) -> Float[Tensor, "b entries"]:
        """The entries at flat positions `at`; a few of them place by place."""
        outputs, inputs, k, m = self.shape
        if self.groups > 1 or GATHERED * len(at) > (outputs - COPIED) * inputs * k * m:
            return DenseGradient(self.whole()).entries(at)
        o, column = at // (inputs * k * m), at % (k * m) * inputs + at // (k * m) % inputs
        found = [
            (at_least_float32(g)[:, o] * at_least_float32(p)[:, :, column].transpose(1, 2)).sum(2)
            for _, g, p in self._factors()
        ]
        return torch.cat(found)

    def between(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right: the right side is a convolution with c filters, so no patch is ever written down."""
        if self.groups > 1:
            return DenseGradient(self.whole()).between(left, right)
        filters = right.T.reshape(-1, *self.shape[1:])
        seen = F.conv2d(at_least_float32(self.x), filters, None, self.stride, self.padding, self.dilation)
        narrow = left.T @ at_least_float32(self.g).flatten(2)
        return torch.bmm(self._by_sample(narrow), self._by_sample(seen.flatten(2)).transpose(1, 2))

    def _grouped(self) -> Float[Tensor, "b o i k l"]:
        x, g = (y.unflatten(0, (self.b, -1)).transpose(0, 1).flatten(1, 2) for y in (self.x, self.g))
        size: Any = (self.b * self.shape[0], *self.shape[1:])
        pairs: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        # Its signature says int, and it takes pairs.
        return conv2d_weight(x, size, g, groups=self.b * self.groups, **pairs).view(self.b, *self.shape)

    def _multiply(self, total: Tensor, factor: Tensor | None, first: bool) -> None:
        """Each sample's matrix times its factor into `total`, whose channels lie last."""
        matrix = total.permute(0, 1, 3, 4, 2).flatten(2)
        for rows, g, patches in self._factors():
            scaled = g if factor is None else at_least_float32(g) * factor[rows].to(total.dtype)[:, None, None]
            matrix[rows].baddbmm_(scaled, patches.to(scaled.dtype), beta=0 if first else 1)

    def _by_sample(self, rows: Float[Tensor, "n c p"]) -> Float[Tensor, "b c mp"]:
        return rows.unflatten(0, (self.b, -1)).transpose(1, 2).flatten(2)

    def _wider(self) -> tuple[int, int]:
        """Height and width with the zeros all around."""
        return self.x.shape[2] + 2 * self.padding[0], self.x.shape[3] + 2 * self.padding[1]

    def _padded(self) -> Float[Tensor, "n h w i"]:
        """Channels last, zeros all around."""
        (n, i, h, w), (top, side) = self.x.shape, self.padding
        wider = self.x.new_zeros(n, *self._wider(), i)
        wider[:, top : top + h, side : side + w] = self.x.permute(0, 2, 3, 1)
        return wider

    def _factors(self) -> Iterator[tuple[slice, Float[Tensor, "s o p"], Float[Tensor, "s p kli"]]]:
        """Some samples at a time: which, their output gradients, and their patches."""
        x, g, (_, i, k, m), (y, z) = self._padded(), self._by_sample(self.g.flatten(2)), self.shape, self.g.shape[2:]
        each, (row, down, right, _) = len(x) // self.b, x.stride()
        steps = (self.stride[0] * down, self.stride[1] * right, self.dilation[0] * down, self.dilation[1] * right, 1)
        step = max(1, AT_A_TIME // (each * y * z * k * m * i)) if x.device.type == "cpu" else self.b
        for start in range(0, self.b, step):
            here = x[start * each : (start + step) * each]
            patches = here.as_strided((len(here), y, z, k, m, i), (row, *steps), here.storage_offset())
            rows = slice(start, start + len(here) // each)
            yield rows, g[rows], patches.reshape(len(here) // each, each * y * z, k * m * i)

    def _along_kernel(self, gram: Float[Tensor, "b P P"]) -> Float[Tensor, "b y z y z"]:
        """From the Gram of padded pixels to that of patches: one direction of the kernel after the other."""
        gram = gram.view(-1, *self._wider(), *self._wider())
        gram = _sum(gram[:, here, :, here] for here in self._seen(0))
        return _sum(gram[:, :, here, :, here] for here in self._seen(1))

    def _seen(self, side: int) -> Iterator[slice]:
        """For each offset of the kernel along a side, the pixels that stand under it, place by place."""
        reach = self.stride[side] * (self.g.shape[2 + side] - 1) + 1
        for first in range(0, self.shape[2 + side] * self.dilation[side], self.dilation[side]):
            yield slice(first, first + reach, self.stride[side])


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts).clone(memory_format=torch.contiguous_format)
    for part in parts:
        total += part
    return total
