"""P of a sum of gradients, added up piece by piece.

P is linear, so it may be applied to the sum once, or to every piece. A projector that needs few of a gradient's numbers
has a way of its own, straight from the factors; for the others the sum is kept at full width.

How long each sample's gradient is, over all parameters or over a layer's, and what is then still needed of it.

Pieces are looked at one after another. What a norm had to multiply out is large, and memory that is new and cold costs
more than the product: so what is wanted of a piece besides its norm is taken then and there, and the rest given up.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import layer_of
from concept_trak.attribution.gradients.factors import DenseGradient, ParameterGradient
from concept_trak.attribution.numerics import at_least_float32
from concept_trak.attribution.projector import Projector, kept, kronecker_factors, sketch


class FeatureSum(ABC):
    """P of a running sum: `add` a piece of one parameter, each sample times its factor; `phi` is P of all of it.

    Where factors are norms, they are known only when every piece has been seen. So `add` comes in two: `take` what is
    needed of a piece while it is at hand, often few numbers, so that the rest is given up; and `put` it later.
    """

    @abstractmethod
    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None: ...
    @abstractmethod
    def take(self, name: str, piece: ParameterGradient) -> ParameterGradient: ...
    @abstractmethod
    def put(self, name: str, taken: ParameterGradient, factor: Float[Tensor, " b"]) -> None: ...
    @abstractmethod
    def phi(self) -> Float[Tensor, "b k"]: ...

    def add(self, name: str, piece: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        self.put(name, self.take(name, piece), factor)


class FullSum(FeatureSum):
    """For any P: the sum itself, at full width and at least float32, projected once.

    It is the largest thing a batch needs. On a CPU fresh memory costs ten times what adding to it does (measured: 58 ms
    against 5.6 for 16 x 1.0 M numbers), so the sum's goes on to the next one once phi is known.
    """

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None:
        self.projector, sizes = projector, [b * p.numel() for p in parameters.values()]
        self.room = _room(sum(sizes), at_least_float32(next(iter(parameters.values())).new_empty(0)))
        self.empty = dict(zip(parameters, self.room[: sum(sizes)].split(sizes), strict=True))
        self.shapes, self.sum = {name: (b, *p.shape) for name, p in parameters.items()}, dict[str, Tensor]()

    def take(self, name: str, piece: ParameterGradient) -> ParameterGradient:
        return piece

    def put(self, name: str, taken: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        room = self.empty.pop(name, None)
        if room is not None:
            self.sum[name] = taken.lay(room)
            taken.add_to(self.sum[name], factor, first=True)
        else:
            taken.add_to(self.sum[name], factor)

    def phi(self) -> Float[Tensor, "b k"]:
        """Once: the sum is given up."""
        self.sum |= {name: room.zero_().view(self.shapes[name]) for name, room in self.empty.items()}
        phi, self.sum = self.projector({name: self.sum[name] for name in self.shapes}), {}
        _spare.append(self.room)
        return phi


_spare: list[Tensor] = []


def _room(size: int, like: Tensor) -> Tensor:
    """Memory for at least `size` numbers of the kind of `like`: what another sum has left, or new."""
    while _spare:
        room = _spare.pop()
        if len(room) >= size and (room.dtype, room.device) == (like.dtype, like.device):
            return room
    return like.new_empty(size)


class MaskSum(FeatureSum):
    """For `mask`: only the coordinates that it keeps, straight from a gradient's factors."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None:
        sizes = tuple((name, p.numel()) for name, p in parameters.items())
        first = next(iter(parameters.values()))
        self.kept = kept(sizes, projector.dim, projector.seed, first.device)
        self.sum = at_least_float32(first.new_zeros(b, projector.dim))
        self.grow = (sum(size for _, size in sizes) / projector.dim) ** 0.5

    def take(self, name: str, piece: ParameterGradient) -> ParameterGradient:
        at, _ = self.kept[name]
        return DenseGradient(piece.entries(at) if len(at) else self.sum[:, :0])

    def put(self, name: str, taken: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        _, column = self.kept[name]
        if len(column):
            self.sum[:, column] += taken.whole() * factor.to(self.sum.dtype)[:, None]

    def phi(self) -> Float[Tensor, "b k"]:
        return self.sum * self.grow


class KroneckerSum(FeatureSum):
    """For `kronecker`: matrices between their two sides, straight from a gradient's factors, sketched once."""

    def __init__(self, projector: Projector, parameters: Mapping[str, Tensor], b: int) -> None:
        self.projector, first = projector, next(iter(parameters.values()))
        matrices, kind = {n: p for n, p in parameters.items() if p.dim() > 1}, at_least_float32(first.new_empty(0))
        self.sides = {
            n: kronecker_factors(n, p.shape, projector.seed, kind.dtype, kind.device) for n, p in matrices.items()
        }
        self.sum = {name: kind.new_zeros(b, *self._shape(name, p)) for name, p in parameters.items()}

    def _shape(self, name: str, p: Tensor) -> tuple[int, ...]:
        return tuple(side.shape[1] for side in self.sides[name]) if name in self.sides else p.shape

    def take(self, name: str, piece: ParameterGradient) -> ParameterGradient:
        return DenseGradient(
            piece.between(*self.sides[name]) if name in self.sides else at_least_float32(piece.whole())
        )

    def put(self, name: str, taken: ParameterGradient, factor: Float[Tensor, " b"]) -> None:
        taken.add_to(self.sum[name], factor)

    def phi(self) -> Float[Tensor, "b k"]:
        return sketch(self.sum, self.projector.dim, self.projector.seed)


TOTALS: dict[str, type[FeatureSum]] = {"mask": MaskSum, "kronecker": KroneckerSum}
"""By projector; `PROJECTORS` says what each must equal."""


def feature_sum(projector: Projector, parameters: Mapping[str, Tensor], b: int) -> FeatureSum:
    """P of a sum over b samples' gradients of `parameters`, 0 so far."""
    return TOTALS.get(projector.kind, FullSum)(projector, parameters, b)


Take = Callable[[str, ParameterGradient], ParameterGradient]
"""What is to be kept of a parameter's piece once its norm is known."""
DEAD = 1e-5
"""Share of the whole gradient's norm below which a layer's own is rounding: keys where one token is attended to."""


def squared_norms(piece: ParameterGradient) -> tuple[Float[Tensor, " b"], ParameterGradient]:
    """|g|^2 of each sample, and the piece as it then is: multiplied out where that was the cheaper way to know."""
    if not piece.cheaper_apart:
        piece = DenseGradient(piece.whole())
    return piece.square_norm(), piece


def gradient_norms(
    pieces: Mapping[str, ParameterGradient], over: str, take: Take = lambda name, piece: piece
) -> tuple[dict[str, Float[Tensor, " b"]], dict[str, ParameterGradient]]:
    """By parameter name, each sample's Euclidean norm over `all` of them, or over those of its `layer`, 0 where that is
    rounding; and what was taken of the pieces as they then were (see `measured`), one at a time."""
    vectors = [p.value for p in pieces.values() if over == "all" and isinstance(p, DenseGradient) and p.small]
    squares, since = (
        [DenseGradient(torch.cat(vectors, 1)).square_norm()] if vectors else [],
        dict[str, ParameterGradient](),
    )
    members: dict[str, list[Tensor]] = {}
    for name, piece in pieces.items():
        if over != "all" or not (isinstance(piece, DenseGradient) and piece.small):
            square, piece = squared_norms(piece)
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
