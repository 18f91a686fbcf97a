"""One parameter's per-sample gradient, as a layer leaves it: multiplied out, or still the product it is made of.

The gradient of a matrix is a sum over the places where it was used, sum_p g_p x_p^T, of output gradients and inputs.
Its norm, a scaled sum, and some of its entries can be had from the two factors without writing the matrix down.
Letters: b samples, p places (tokens, pixels), o outputs, i inputs.

A sample's norm costs p o i multiply-adds by the matrix, and p^2 (o + i) by the factors' Grams; the cheaper one is
taken, layer by layer:

    |sum_p g_p x_p^T|^2 = sum_{p, q} <g_p, g_q> <x_p, x_q>                                          (Goodfellow 2015)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.precision import wide


@dataclass(frozen=True)
class Whole:
    """Multiplied out: [b, *shape of the parameter]."""

    value: Float[Tensor, "b ..."]

    def whole(self) -> Float[Tensor, "b ..."]:
        return self.value

    def square_norm(self) -> Float[Tensor, " b"]:
        return torch.linalg.vector_norm(wide(self.value.flatten(1)), dim=1).square()

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], first: bool = False) -> None:
        """`first`: in place of what `total` held, which is then not read."""
        value, factor = wide(self.value), factor.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))
        _ = torch.mul(value, factor, out=total) if first else total.addcmul_(value, factor)

    def entries(self, at: Tensor) -> Float[Tensor, "b entries"]:
        """The entries at flat positions `at`."""
        return wide(self.value.flatten(1)[:, at])

    def between(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right of every sample, G as [o, everything else]."""
        return left.T @ (wide(self.value.flatten(2)) @ right)


@dataclass(frozen=True)
class Product:
    """sum_p g_p x_p^T, for a parameter of `shape` with o rows: its factors."""

    g: Float[Tensor, "b p o"]
    x: Float[Tensor, "b p i"]
    shape: tuple[int, ...]

    @property
    def cheaper_apart(self) -> bool:
        """Whether the norm is cheaper by the factors than by the matrix."""
        places, o, i = self.g.shape[1], self.g.shape[2], self.x.shape[2]
        return places * (o + i) < o * i

    def whole(self) -> Float[Tensor, "b ..."]:
        return torch.bmm(self.g.transpose(1, 2), self.x).reshape(-1, *self.shape)

    def square_norm(self) -> Float[Tensor, " b"]:
        g, x = wide(self.g), wide(self.x)
        return torch.linalg.vecdot(
            torch.bmm(g, g.transpose(1, 2)).flatten(1), torch.bmm(x, x.transpose(1, 2)).flatten(1)
        )

    def add_to(self, total: Float[Tensor, "b ..."], factor: Float[Tensor, " b"], first: bool = False) -> None:
        g = wide(self.g) * factor.to(total.dtype)[:, None, None]
        total.view(len(g), g.shape[2], -1).baddbmm_(g.transpose(1, 2), wide(self.x), beta=0 if first else 1)

    def entries(self, at: Tensor) -> Float[Tensor, "b entries"]:
        """The entries at flat positions `at`, place by place: the matrix is not needed for a few of them."""
        row, column = at // self.x.shape[2], at % self.x.shape[2]
        return (wide(self.g)[:, :, row] * wide(self.x)[:, :, column]).sum(1)

    def between(self, left: Float[Tensor, "o r"], right: Float[Tensor, "i c"]) -> Float[Tensor, "b r c"]:
        """left^T G right of every sample, and nothing wider than the factors."""
        return torch.bmm((wide(self.g) @ left).transpose(1, 2), wide(self.x) @ right)


Piece = Whole | Product

DEAD = 1e-5
"""Share of the whole gradient's norm below which a layer's own is rounding: keys where one token is attended to."""


def measured(piece: Piece) -> tuple[Float[Tensor, " b"], Piece]:
    """|g|^2 of each sample, and the piece as it then is: multiplied out where that was the cheaper way to know."""
    if isinstance(piece, Product) and not piece.cheaper_apart:
        piece = Whole(piece.whole())
    return piece.square_norm(), piece


def lengths(pieces: Mapping[str, Piece], over: str) -> tuple[dict[str, Float[Tensor, " b"]], dict[str, Piece]]:
    """By parameter name, each sample's Euclidean norm over `all` of them, or over those of its `layer`, 0 where that is
    rounding; and the pieces since (see `measured`)."""
    known = {name: measured(piece) for name, piece in pieces.items()}
    since, whole = {n: piece for n, (_, piece) in known.items()}, _root_of_sum([s for s, _ in known.values()])
    if over == "all":
        return dict.fromkeys(known, whole), since
    members: dict[str, list[Tensor]] = {}
    for name, (square, _) in known.items():
        members.setdefault(layer_of(name), []).append(square)
    own = {layer: _root_of_sum(squares) for layer, squares in members.items()}
    alive = {layer: torch.where(length > DEAD * whole, length, 0) for layer, length in own.items()}
    return {name: alive[layer_of(name)] for name in known}, since


def _root_of_sum(squares: Sequence[Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
    return torch.stack(list(squares)).sum(0).sqrt()


def layer_of(name: str) -> str:
    """The module that owns a parameter: its weight and its bias are one layer."""
    return name.rpartition(".")[0]
