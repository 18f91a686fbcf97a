"""P: from per-sample gradients over d parameters to k numbers, preserving inner products in expectation.

Every matrix is named by (seed, parameter name) and built from integer hashes, so that it is the same in every process,
on every device, for every batch; nothing of size d k is ever stored. Each function takes the gradients by parameter
name and returns [b, k].

    identity    phi = g, k = d
    mask        k of the d coordinates without replacement, times sqrt(d / k)
    rademacher  dense +-1 / sqrt(k);   Var<Pg, Ph> = (|g|^2 |h|^2 + <g,h>^2 - 2 sum g_i^2 h_i^2) / k
    sketch      one +-1 per coordinate in a random bucket (count sketch, Charikar 2002); the same variance, d instead
                of d k products
    kronecker   S_o^T G S_i of every matrix, from its factors where it has some, and a sketch of that

A smaller k is part of a larger one. `mask`, `rademacher`: its first columns, rescaled. `sketch`, `kronecker`: if k'
divides k, its columns j, j + k', j + 2 k', ... added up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.gradients.factors import DenseGradient, in_memory_order, memory_order
from concept_trak.attribution.numerics import at_least_float32, hashes, signs

Gradients = dict[str, Float[Tensor, "b ..."]]  # by parameter name: [b, *parameter.shape]
_ROWS = 1024  # of the signs that all blocks of `rademacher` share
_BLOCKS = 64  # of them that are multiplied at a time: b x 64 x k numbers
_SIDE = 16  # columns of either side of `kronecker`


@dataclass(frozen=True)
class Projector:
    """Which P: `kind` a row of `PROJECTORS`, `dim` = k (ignored by identity), `seed`.

    The defaults: of sketch, kronecker and mask at k = 4096 the one that costs least while its scores agree with
    unprojected ones to .95 plain and at the default damping (Spearman, least over concepts; 160 of the demo's images).
    """

    kind: str = "kronecker"
    dim: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in PROJECTORS:
            raise ValueError(f"projector.kind={self.kind!r} is not known; expected one of: {', '.join(PROJECTORS)}")
        if self.dim < 1:
            raise ValueError(f"projector.dim={self.dim}: expected a positive number of features")

    def width(self, parameters: int) -> int:
        """k for a model with so many attributable parameters.

        Raises:
            ValueError: the projector is wider than the gradient it would compress.
        """
        if self.kind == "identity":
            return parameters
        if self.dim > parameters:
            raise ValueError(
                f"projector.dim={self.dim} is wider than the {parameters} attributable parameters; "
                f"choose projector.dim <= {parameters}, projector=identity, or more model.parameters"
            )
        return self.dim

    def __call__(self, gradients: Gradients) -> Float[Tensor, "b k"]:
        return PROJECTORS[self.kind]({name: at_least_float32(g) for name, g in gradients.items()}, self.dim, self.seed)


def identity(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def mask(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """The k coordinates with the smallest hashes, in that order, so that a smaller k is a prefix of a larger one."""
    flat = identity(gradients, dim, seed)
    hashed = torch.cat([hashes(seed, name, g[0].numel(), g.device) for name, g in gradients.items()])
    return flat[:, hashed.argsort(stable=True)[:dim]] * (len(hashed) / dim) ** 0.5


@lru_cache(maxsize=8)
def kept(
    sizes: tuple[tuple[str, int], ...], dim: int, seed: int, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter: which of its coordinates `mask` keeps, and the columns of phi that they go to."""
    keep = torch.cat([hashes(seed, name, size, device) for name, size in sizes]).argsort(stable=True)[:dim]
    start, found = 0, {}
    for name, size in sizes:
        column = ((keep >= start) & (keep < start + size)).nonzero()[:, 0]
        found[name] = (keep[column] - start, column)
        start += size
    return found


def rademacher(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """Dense signs d_i R[i mod m, j] e[i div m, j] / sqrt(k): d by coordinate, R shared, e by block of m coordinates.

    Any two rows of one P are uncorrelated and every row has its own d_i, which is all that the variance asks of signs
    that are independent everywhere; but only R costs m k of them. Column j does not depend on k.
    """
    first = next(iter(gradients.values()))
    total, shared = first.new_zeros(len(first), dim), signs(seed, "every block", range(_ROWS), dim, first)
    for name, g in zip(gradients, (g.flatten(1) for g in gradients.values()), strict=True):
        own = signs(seed, name, range(-(-g.shape[1] // 32)), 32, g).flatten()
        for start in range(0, g.shape[1], _ROWS * _BLOCKS):
            here = slice(start, start + _ROWS * _BLOCKS)
            cut = _in_blocks(g[:, here] * own[: g.shape[1]][here])
            blocks = range(start // _ROWS, start // _ROWS + cut.shape[1])
            total += (cut @ shared[: cut.shape[2]] * signs(seed, f"{name} blocks", blocks, dim, g)).sum(1)
    return total / dim**0.5


def _in_blocks(g: Float[Tensor, "b d"]) -> Float[Tensor, "b blocks rows"]:
    """Cut after every `_ROWS` coordinates, with zeros at the end where one block does not hold all."""
    rows = min(_ROWS, g.shape[1])
    return torch.nn.functional.pad(g, (0, -g.shape[1] % rows)).unflatten(1, (-1, rows))


def sketch(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """Each coordinate is added to its bucket: one of k if its sign is +, one of k others if it is -."""
    first = next(iter(gradients.values()))
    total = first.new_zeros(len(first), 2 * dim)
    vectors, rest = ([n for n, g in gradients.items() if (g.dim() == 2) == small] for small in (True, False))
    laid = tuple((name, gradients[name].shape[1:], tuple(memory_order(gradients[name]))) for name in (*vectors, *rest))
    bucket = _buckets(laid, dim, seed, first.device)
    if vectors:  # together: many, of few numbers each
        here = torch.cat([bucket[name] for name in vectors])
        total.scatter_add_(1, here.expand(len(first), -1), torch.cat([gradients[name] for name in vectors], 1))
    for name in rest:
        total.scatter_add_(1, bucket[name].expand(len(first), -1), in_memory_order(gradients[name]))
    return total[:, dim:] - total[:, :dim]


@lru_cache(maxsize=1)
def _buckets(
    laid: tuple[tuple[str, torch.Size, tuple[int, ...]], ...], dim: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """By parameter, the bucket in 0 ... 2 k - 1 of each coordinate, as they lie in memory: 8 bytes of each, kept from
    batch to batch."""
    found = {}
    for name, shape, turned in laid:
        h = hashes(seed, name, shape.numel(), device)
        bucket = ((h >> 8) % dim).add_(h & 1, alpha=dim).view(shape)
        found[name] = bucket.permute([d - 1 for d in turned]).flatten()
    return found


def kronecker(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """A sketch of S_o^T G S_i of every matrix; vectors are sketched as they are. Takes [b, *shape]."""
    narrow = {
        n: two_sided(g, *kronecker_factors(n, g.shape[1:], seed, g.dtype, g.device)) if g.dim() > 2 else g
        for n, g in gradients.items()
    }
    return sketch(narrow, dim, seed)


def two_sided(g: Float[Tensor, "b ..."], left: Tensor, right: Tensor) -> Float[Tensor, "b p q"]:
    """S_o^T G S_i, G as [o, everything else] and S of +-1 / sqrt(its columns).

    Var<S_o^T G S_i, S_o^T H S_i> = U / p + V / q + W / (p q), with U = 1/2 sum_{a != b} (C_ab + C_ba)^2 of C = G H^T, V
    the same of H^T G, and W = 1/4 sum_{a != b, c != d} (H_ac G_bd + H_ad G_bc + H_bc G_ad + H_bd G_ac)^2. It is worst
    for gradients of one place, which have rank 1: U and V are then about 2 |G|^4, where k signs have 2 |G|^4 / k.
    """
    return DenseGradient(g).between(left, right)


@lru_cache(maxsize=4096)
def kronecker_factors(
    name: str, shape: torch.Size, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """S_o [o, p] and S_i [i, q] of a matrix; a side with no more than `_SIDE` entries stays as it is."""

    def side(which: str, n: int) -> Tensor:
        if n <= _SIDE:
            return torch.eye(n, dtype=dtype, device=device)
        return signs(seed, f"{name} {which}", range(n), _SIDE, torch.empty(0, dtype=dtype, device=device)) / _SIDE**0.5

    return side("left", shape[0]), side("right", math.prod(shape[1:]))


PROJECTORS: dict[str, Callable[[Gradients, int, int], Tensor]] = {
    "identity": identity,
    "mask": mask,
    "rademacher": rademacher,
    "sketch": sketch,
    "kronecker": kronecker,
}
