"""P of a sum of gradients, added up piece by piece.

P is linear, so it may be applied to the sum once, or to every piece. A projector that needs few of a gradient's numbers
has a way of its own, straight from the factors; for the others the sum is kept at full width.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from concept_trak.piece import Piece, wide
from concept_trak.projector import Projector, kept


@runtime_checkable
class Total(Protocol):
    """P of a running sum: `add` a piece of one parameter, each sample times its factor; `phi` is P of all of it."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None: ...
    def add(self, name: str, piece: Piece, factor: Float[Tensor, " b"]) -> None: ...
    def phi(self) -> Float[Tensor, "b k"]: ...


class Summed:
    """For any P: the sum itself, at full width and at least float32, projected once."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None:
        self.projector = projector
        self.sum = {name: wide(p.new_zeros(b, *p.shape)) for name, p in parameters.items()}

    def add(self, name: str, piece: Piece, factor: Float[Tensor, " b"]) -> None:
        piece.add_to(self.sum[name], factor)

    def phi(self) -> Float[Tensor, "b k"]:
        return self.projector(self.sum)


class Picked:
    """For `mask`: only the coordinates that it keeps, straight from a gradient's factors."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None:
        sizes = tuple((name, p.numel()) for name, p in parameters.items())
        first = next(iter(parameters.values()))
        self.kept = kept(sizes, projector.dim, projector.seed, first.device)
        self.sum = wide(first.new_zeros(b, projector.dim))
        self.grow = (sum(size for _, size in sizes) / projector.dim) ** 0.5

    def add(self, name: str, piece: Piece, factor: Float[Tensor, " b"]) -> None:
        at, column = self.kept[name]
        self.sum[:, column] += piece.entries(at) * factor.to(self.sum.dtype)[:, None]

    def phi(self) -> Float[Tensor, "b k"]:
        return self.sum * self.grow


TOTALS: dict[str, type[Total]] = {"mask": Picked}
"""By projector; `PROJECTORS` says what each must equal."""


def running_total(projector: Projector, parameters: Mapping[str, Tensor], b: int) -> Total:
    """P of a sum over b samples' gradients of `parameters`, 0 so far."""
    return TOTALS.get(projector.kind, Summed)(projector, parameters, b)
