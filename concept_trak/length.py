"""How long each sample's gradient is, over all parameters or over a layer's, and what is then still needed of it.

Pieces are looked at one after another. What a norm had to multiply out is large, and memory that is new and cold costs
more than the product: so what is wanted of a piece besides its norm is taken then and there, and the rest given up.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.piece import Piece, Whole

Take = Callable[[str, Piece], Piece]
"""What is to be kept of a parameter's piece once its norm is known."""

DEAD = 1e-5
"""Share of the whole gradient's norm below which a layer's own is rounding: keys where one token is attended to."""


def measured(piece: Piece) -> tuple[Float[Tensor, " b"], Piece]:
    """|g|^2 of each sample, and the piece as it then is: multiplied out where that was the cheaper way to know."""
    if not piece.cheaper_apart:
        piece = Whole(piece.whole())
    return piece.square_norm(), piece


def lengths(
    pieces: Mapping[str, Piece], over: str, take: Take = lambda name, piece: piece
) -> tuple[dict[str, Float[Tensor, " b"]], dict[str, Piece]]:
    """By parameter name, each sample's Euclidean norm over `all` of them, or over those of its `layer`, 0 where that is
    rounding; and what was taken of the pieces as they then were (see `measured`), one at a time."""
    vectors = [p.value for p in pieces.values() if over == "all" and isinstance(p, Whole) and p.small]
    squares, since = [Whole(torch.cat(vectors, 1)).square_norm()] if vectors else [], dict[str, Piece]()
    members: dict[str, list[Tensor]] = {}
    for name, piece in pieces.items():
        if over != "all" or not (isinstance(piece, Whole) and piece.small):
            square, piece = measured(piece)
            members.setdefault(layer_of(name), []).append(square)
            squares.append(square)
        since[name] = take(name, piece)
    whole = _root_of_sum(squares)
    if over == "all":
        return dict.fromkeys(pieces, whole), since
    own = {layer: _root_of_sum(each) for layer, each in members.items()}
    alive = {layer: torch.where(length > DEAD * whole, length, 0) for layer, length in own.items()}
    return {name: alive[layer_of(name)] for name in pieces}, since


def _root_of_sum(squares: Sequence[Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
    return torch.stack(list(squares)).sum(0).sqrt()


def layer_of(name: str) -> str:
    """The module that owns a parameter: its weight and its bias are one layer."""
    return name.rpartition(".")[0]
