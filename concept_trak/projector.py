"""P: from per-sample gradients over d parameters to k numbers, preserving inner products in expectation.

Every matrix is named by (seed, parameter name) and built from integer hashes, so that it is the same in every process,
on every device, for every batch; none is ever stored. Each function takes the gradients by parameter name and returns
[b, k].

    identity    phi = g, k = d
    mask        k of the d coordinates without replacement, times sqrt(d / k)
    rademacher  dense +-1 / sqrt(k);   Var<Pg, Ph> = (|g|^2 |h|^2 + <g,h>^2 - 2 sum g_i^2 h_i^2) / k
    sketch      one +-1 per coordinate in a random bucket (count sketch, Charikar 2002); the same variance, d instead
    of d k products
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from concept_trak.noise import key
from concept_trak.piece import wide

Gradients = dict[str, Float[Tensor, "b ..."]]  # by parameter name: [b, *parameter.shape]

_BLOCK = 4096  # coordinates of P that exist at a time under `rademacher`: 4096 x k numbers


@dataclass(frozen=True)
class Projector:
    """Which P: `kind` a row of `PROJECTORS`, `dim` = k (ignored by identity), `seed`."""

    kind: str = "sketch"
    dim: int = 2048
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
        flat = {name: wide(g.flatten(1)) for name, g in gradients.items()}
        return PROJECTORS[self.kind](flat, self.dim, self.seed)


def identity(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    return torch.cat(list(gradients.values()), 1)


def mask(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """The k coordinates with the smallest hashes, in that order, so that a smaller k is a prefix of a larger one."""
    hashes = torch.cat([_hashes(seed, name, g.shape[1], g.device) for name, g in gradients.items()])
    keep = hashes.argsort(stable=True)[:dim]
    return torch.cat(list(gradients.values()), 1)[:, keep] * (len(hashes) / dim) ** 0.5


@lru_cache(maxsize=8)
def kept(
    sizes: tuple[tuple[str, int], ...], dim: int, seed: int, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter: which of its coordinates `mask` keeps, and the columns of phi that they go to."""
    keep = torch.cat([_hashes(seed, name, size, device) for name, size in sizes]).argsort(stable=True)[:dim]
    start, found = 0, {}
    for name, size in sizes:
        column = ((keep >= start) & (keep < start + size)).nonzero()[:, 0]
        found[name] = (keep[column] - start, column)
        start += size
    return found


def rademacher(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """Dense signs from one hash per 32 columns; column j does not depend on k."""
    total = torch.zeros((), device=next(iter(gradients.values())).device)
    for name, g in gradients.items():
        for start in range(0, g.shape[1], _BLOCK):
            block = g[:, start : start + _BLOCK]
            total = total + block @ _signs(seed, name, start, block.shape[1], dim, block)
    return total / dim**0.5


def sketch(gradients: Gradients, dim: int, seed: int) -> Float[Tensor, "b k"]:
    """Each coordinate is added, with its sign, to its bucket."""
    first = next(iter(gradients.values()))
    total = first.new_zeros(len(first), dim)
    for name, g in gradients.items():
        hashes = _hashes(seed, name, g.shape[1], g.device)
        bucket, sign = (hashes >> 8) % dim, ((hashes & 1) * 2 - 1).to(g)
        total.scatter_add_(1, bucket.expand(len(g), -1), g * sign)
    return total


def _signs(seed: int, name: str, start: int, rows: int, dim: int, like: Tensor) -> Float[Tensor, "rows k"]:
    words = -(-dim // 32)
    columns = _mix(torch.arange(words, device=like.device) + key(seed, name, "columns") % 2**40)
    here = _mix(torch.arange(start, start + rows, device=like.device) + key(seed, name, "rows") % 2**40)
    bits = _mix(here[:, None] ^ columns[None, :])
    shifts = torch.arange(8, 40, device=like.device)
    return ((bits[:, :, None] >> shifts & 1) * 2 - 1).reshape(rows, -1)[:, :dim].to(like)


def _hashes(seed: int, name: str, count: int, device: torch.device) -> Int64[Tensor, " count"]:
    """63-bit hashes of coordinates 0 ... count - 1 of the parameter `name`."""
    return _mix(torch.arange(count, device=device) + key(seed, name, "hash") % 2**40)


def _mix(x: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """splitmix64's finaliser (Steele et al. 2014) on int64, whose products wrap alike everywhere.

    The sign bit of the result is dropped.
    """
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return (x ^ (x >> 31 & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF


PROJECTORS: dict[str, Callable[[Gradients, int, int], Tensor]] = {
    "identity": identity,
    "mask": mask,
    "rademacher": rademacher,
    "sketch": sketch,
}
