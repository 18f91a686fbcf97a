"""The per-sample gradient of one parameter, either dense or as two factors whose product it is.

The gradient of a matrix is a sum over the positions p where the matrix was used: sum_p g_p x_p^T, with output gradients
g and inputs x. Its norm, a scaled sum of it and some of its entries can be computed from the two factors, so the matrix
is formed only where that is cheaper. Convolutions are in `conv2d.py`.

Letters: b samples, p positions (tokens, pixels), o outputs, i inputs.

A sample's norm costs p o i multiply-adds from the matrix, and p^2 (o + i) from the Gram matrices of the factors
(Goodfellow 2015):

    |sum_p g_p x_p^T|^2 = sum_{p, q} <g_p, g_q> <x_p, x_q>
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from concept_trak.attribution.numerics import at_least_float32

Gradients = dict[str, Float[Tensor, "b ..."]]
"""Dense gradients by parameter name: [b, *shape of the parameter]."""


@runtime_checkable
class ParameterGradient(Protocol):
    """The gradient G of one parameter for each of b samples."""

    @property
    def norm_is_cheaper_in_factors(self) -> bool:
        """Whether `squared_norm` costs less on this object than on its dense form."""
        ...

    def dense(self) -> Float[Tensor, "b ..."]:
        """G of every sample: [b, *shape of the parameter]."""
        ...

    def squared_norm(self) -> Float[Tensor, " b"]:
        """|G|^2 of every sample, at least float32."""
        ...

    def as_sum(self, memory: Float[Tensor, " numbers"]) -> Float[Tensor, "b ..."]:
        """`memory` viewed as [b, *shape], in the memory order that makes `add_to` fastest."""
        ...

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], overwrite: bool = False) -> None:
        """Add each sample's G times its factor to `total`; with `overwrite`, replace the contents of `total` by it."""
        ...

    def entries(self, at: Int64[Tensor, " entries"]) -> Float[Tensor, "b entries"]:
        """The entries of G at the flat positions `at`."""
        ...

    def two_sided(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right of every sample, with G as [o, everything else]."""
        ...


def memory_order(value: Float[Tensor, "b ..."]) -> list[int]:
    """The dimensions of one sample's part, from the outermost in memory to the innermost."""
    dimensions = range(1, value.dim())
    return list(dimensions) if value.is_contiguous() else sorted(dimensions, key=lambda d: -value.stride(d))


def in_memory_order(value: Float[Tensor, "b ..."]) -> Float[Tensor, "b numbers"]:
    """Each sample's numbers in the order of memory, which copies none."""
    return value.flatten(1) if value.is_contiguous() else value.permute(0, *memory_order(value)).flatten(1)


def memory_index(at: Int64[Tensor, " entries"], value: Float[Tensor, "b ..."]) -> Int64[Tensor, " entries"]:
    """The columns of `in_memory_order(value)` that hold the entries at the flat positions `at`."""
    if value.is_contiguous():
        return at
    index = torch.zeros_like(at)
    for size, stride in zip(value.shape[:0:-1], value.stride()[:0:-1], strict=True):
        index, at = index + at % size * stride, at // size
    return index


GATHERED = 256
"""The cost of one multiply-add of numbers gathered from both factors, in multiply-adds of a matrix product: about 130
under a profiler, doubled in favour of the product."""


@dataclass(frozen=True)
class DenseGradient:
    """A gradient in dense form."""

    value: Float[Tensor, "b ..."]
    norm_is_cheaper_in_factors = True  # the dense form is already there

    @property
    def is_vector(self) -> bool:
        """Whether the parameter is a vector. Vectors are many and small, so callers join them."""
        return self.value.dim() == 2

    def dense(self) -> Float[Tensor, "b ..."]:
        return self.value

    def squared_norm(self) -> Float[Tensor, " b"]:
        return torch.linalg.vector_norm(at_least_float32(in_memory_order(self.value)), dim=1).square()

    def as_sum(self, memory: Float[Tensor, " numbers"]) -> Float[Tensor, "b ..."]:
        if self.value.is_contiguous():
            return memory.view(self.value.shape)
        order = [0, *memory_order(self.value)]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return memory.view([self.value.shape[d] for d in order]).permute(inverse)

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], overwrite: bool = False) -> None:
        value, factor = at_least_float32(self.value), factor.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))
        _ = torch.mul(value, factor, out=total) if overwrite else total.addcmul_(value, factor)

    def entries(self, at: Int64[Tensor, " entries"]) -> Float[Tensor, "b entries"]:
        return at_least_float32(in_memory_order(self.value)[:, memory_index(at, self.value)])

    def two_sided(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        return left.T @ (at_least_float32(self.value.flatten(2)) @ right)


@dataclass(frozen=True)
class FactoredGradient:
    """sum_p g_p x_p^T as its two factors, for a parameter of `shape` with o rows."""

    g: Float[Tensor, "b p o"]
    x: Float[Tensor, "b p i"]
    shape: tuple[int, ...]

    @property
    def norm_is_cheaper_in_factors(self) -> bool:
        positions, o, i = self.g.shape[1], self.g.shape[2], self.x.shape[2]
        return positions * (o + i) < o * i

    def dense(self) -> Float[Tensor, "b ..."]:
        return torch.bmm(self.g.transpose(1, 2), self.x).reshape(-1, *self.shape)

    def squared_norm(self) -> Float[Tensor, " b"]:
        g, x = at_least_float32(self.g), at_least_float32(self.x)
        return torch.linalg.vecdot(
            torch.bmm(g, g.transpose(1, 2)).flatten(1), torch.bmm(x, x.transpose(1, 2)).flatten(1)
        )

    def as_sum(self, memory: Float[Tensor, " numbers"]) -> Float[Tensor, "b ..."]:
        return memory.view(-1, *self.shape)

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], overwrite: bool = False) -> None:
        g = at_least_float32(self.g) * factor.to(total.dtype)[:, None, None]
        matrix = total.view(len(g), g.shape[2], -1)
        matrix.baddbmm_(g.transpose(1, 2), at_least_float32(self.x), beta=0 if overwrite else 1)

    def entries(self, at: Int64[Tensor, " entries"]) -> Float[Tensor, "b entries"]:
        """The entries at the flat positions `at`; a few are gathered from the factors without forming G."""
        if GATHERED * len(at) > self.g.shape[2] * self.x.shape[2]:
            return DenseGradient(self.dense()).entries(at)
        row, column = at // self.x.shape[2], at % self.x.shape[2]
        return (at_least_float32(self.g)[:, :, row] * at_least_float32(self.x)[:, :, column]).sum(1)

    def two_sided(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right. No intermediate result is wider than the factors."""
        return torch.bmm((at_least_float32(self.g) @ left).transpose(1, 2), at_least_float32(self.x) @ right)
