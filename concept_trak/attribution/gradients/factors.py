"""One parameter's per-sample gradient, as a layer leaves it: multiplied out, or still the product it is made of.
A convolution's is in `conv2d.py`.

The gradient of a matrix is a sum over the places where it was used, sum_p g_p x_p^T, of output gradients and inputs.
Its norm, a scaled sum, and some of its entries can be had from the two factors without writing the matrix down.
Letters: b samples, p places (tokens, pixels), o outputs, i inputs.

A sample's norm costs p o i multiply-adds by the matrix, and p^2 (o + i) by the factors' Grams; the cheaper one is
taken, layer by layer:

    |sum_p g_p x_p^T|^2 = sum_{p, q} <g_p, g_q> <x_p, x_q>                                          (Goodfellow 2015)
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.numerics import at_least_float32


@runtime_checkable
class ParameterGradient(Protocol):
    """The gradient G of one parameter, for each of b samples."""

    @property
    def cheaper_apart(self) -> bool:
        """Whether the norm is cheaper as it is than multiplied out."""
        ...

    def whole(self) -> Float[Tensor, "b ..."]:
        """Multiplied out: [b, *shape of the parameter]."""
        ...

    def square_norm(self) -> Float[Tensor, " b"]: ...

    def lay(self, room: Float[Tensor, " numbers"]) -> Float[Tensor, "b ..."]:
        """`room` as [b, *shape], in the order of memory in which this piece is added fastest."""
        ...

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], first: bool = False) -> None:
        """Each sample times its factor. `first`: in place of what `total` held, which is then not read."""
        ...

    def entries(self, at: Tensor) -> Float[Tensor, "b entries"]:
        """The entries at flat positions `at`."""
        ...

    def between(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right of every sample, G as [o, everything else]."""
        ...


def memory_order(value: Float[Tensor, "b ..."]) -> list[int]:
    """A parameter's dimensions as they lie in memory, the outermost first."""
    there = range(1, value.dim())
    return list(there) if value.is_contiguous() else sorted(there, key=lambda d: -value.stride(d))


def in_memory_order(value: Float[Tensor, "b ..."]) -> Float[Tensor, "b numbers"]:
    """Each sample's numbers in the order of memory, so that none is moved."""
    return value.flatten(1) if value.is_contiguous() else value.permute(0, *memory_order(value)).flatten(1)


def memory_index(at: Tensor, value: Float[Tensor, "b ..."]) -> Tensor:
    """Where the entries at flat positions `at` are in `in_memory_order(value)`."""
    if value.is_contiguous():
        return at
    found = torch.zeros_like(at)
    for size, step in zip(value.shape[:0:-1], value.stride()[:0:-1], strict=True):
        found, at = found + at % size * step, at // size
    return found


GATHERED = 256
"""Multiply-adds of a matrix product that take as long as one of numbers gathered from both factors: about 130 under
a profiler, doubled in favour of the product."""


@dataclass(frozen=True)
class DenseGradient:
    """Multiplied out."""

    value: Float[Tensor, "b ..."]
    cheaper_apart = True  # there is nothing left to multiply

    @property
    def small(self) -> bool:
        """A vector, of which many are looked at together faster than one by one."""
        return self.value.dim() == 2

    def whole(self) -> Float[Tensor, "b ..."]:
        return self.value

    def square_norm(self) -> Float[Tensor, " b"]:
        return torch.linalg.vector_norm(at_least_float32(in_memory_order(self.value)), dim=1).square()

    def lay(self, room: Float[Tensor, " numbers"]) -> Float[Tensor, "b ..."]:
        if self.value.is_contiguous():
            return room.view(self.value.shape)
        turned = [0, *memory_order(self.value)]
        back = sorted(range(len(turned)), key=turned.__getitem__)
        return room.view([self.value.shape[d] for d in turned]).permute(back)

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], first: bool = False) -> None:
        value, factor = at_least_float32(self.value), factor.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))
        _ = torch.mul(value, factor, out=total) if first else total.addcmul_(value, factor)

    def entries(self, at: Tensor) -> Float[Tensor, "b entries"]:
        return at_least_float32(in_memory_order(self.value)[:, memory_index(at, self.value)])

    def between(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        return left.T @ (at_least_float32(self.value.flatten(2)) @ right)


@dataclass(frozen=True)
class FactoredGradient:
    """sum_p g_p x_p^T, for a parameter of `shape` with o rows: its factors."""

    g: Float[Tensor, "b p o"]
    x: Float[Tensor, "b p i"]
    shape: tuple[int, ...]

    @property
    def cheaper_apart(self) -> bool:
        places, o, i = self.g.shape[1], self.g.shape[2], self.x.shape[2]
        return places * (o + i) < o * i

    def whole(self) -> Float[Tensor, "b ..."]:
        return torch.bmm(self.g.transpose(1, 2), self.x).reshape(-1, *self.shape)

    def square_norm(self) -> Float[Tensor, " b"]:
        g, x = at_least_float32(self.g), at_least_float32(self.x)
        return torch.linalg.vecdot(
            torch.bmm(g, g.transpose(1, 2)).flatten(1), torch.bmm(x, x.transpose(1, 2)).flatten(1)
        )

    def lay(self, room: Float[Tensor, " numbers"]) -> Float[Tensor, "b ..."]:
        return room.view(-1, *self.shape)

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], first: bool = False) -> None:
        g = at_least_float32(self.g) * factor.to(total.dtype)[:, None, None]
        total.view(len(g), g.shape[2], -1).baddbmm_(g.transpose(1, 2), at_least_float32(self.x), beta=0 if first else 1)

    def entries(self, at: Tensor) -> Float[Tensor, "b entries"]:
        """The entries at flat positions `at`; a few of them place by place."""
        if GATHERED * len(at) > self.g.shape[2] * self.x.shape[2]:
            return DenseGradient(self.whole()).entries(at)
        row, column = at // self.x.shape[2], at % self.x.shape[2]
        return (at_least_float32(self.g)[:, :, row] * at_least_float32(self.x)[:, :, column]).sum(1)

    def between(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right of every sample, and nothing wider than the factors."""
        return torch.bmm((at_least_float32(self.g) @ left).transpose(1, 2), at_least_float32(self.x) @ right)
