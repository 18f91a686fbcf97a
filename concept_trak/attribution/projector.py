"""P maps per-sample gradients over d parameters to k numbers and preserves inner products in expectation.

Every random matrix is a function of (seed, parameter name), computed from integer hashes, so it is the same in every
process, on every device and for every batch. No matrix of size d k is stored. Each projector takes the gradients by
parameter name and returns phi, [b, k].

    identity    phi = g, k = d
    mask        k of the d coordinates without replacement, times sqrt(d / k)
    rademacher  dense +-1 / sqrt(k);   Var<Pg, Ph> = (|g|^2 |h|^2 + <g,h>^2 - 2 sum g_i^2 h_i^2) / k
    sketch      one +-1 per coordinate in a random bucket (count sketch, Charikar 2002); the same variance as
                `rademacher` with d products instead of d k
    kronecker   S_o^T G S_i of every matrix, then a sketch of the results

Features of a smaller k can be computed from those of a larger one. For `mask` and `rademacher` they are its first
columns, rescaled. For `sketch` and `kronecker`, if k' divides k, column j is the sum of the columns j, j + k',
j + 2 k', ...
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.gradients.factors import DenseGradient, Gradients, in_memory_order, memory_order
from concept_trak.attribution.numerics import at_least_float32, hashes, signs

BLOCK_ROWS = 1024  # rows of the signs that all blocks of `rademacher` share
BLOCKS_AT_ONCE = 64  # blocks of `rademacher` in one product: b x 64 x k numbers
SIDE = 16  # columns of S_o and of S_i in `kronecker`
SMALL = 2**15  # signs of a matrix: a smaller matrix takes longer to draw than to multiply by, so it is kept


@dataclass(frozen=True)
class Projector:
    """The choice of P.

    The default is the cheapest of sketch, kronecker and mask at dim = 4096 whose scores have a Spearman correlation of
    at least 0.95 with unprojected scores, both plain and at the default damping (the smallest over concepts, on 160 of
    the demo's images).

    Args:
        kind: `identity`, `mask`, `rademacher`, `sketch` or `kronecker`.
        dim: k, the number of features; `identity` ignores it.
        seed: the seed of the random matrices.

    Raises:
        UserError: `kind` is not known, or `dim` is not positive.

    Examples:
        >>> import concept_trak as ct
        >>> ct.Projector("sketch", dim=512)
        Projector(kind='sketch', dim=512, seed=0)
    """

    kind: str = "kronecker"
    dim: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in PROJECTORS:
            raise UserError(f"projector.kind={self.kind!r} is not known; expected one of: {', '.join(PROJECTORS)}")
        if self.dim < 1:
            raise UserError(f"projector.dim={self.dim}: expected a positive number of features")

    def width(self, parameters: int) -> int:
        """k for a model with this number of attributable parameters.

        Raises:
            UserError: k is larger than the number of parameters.
        """
        if self.kind == "identity":
            return parameters
        if self.dim > parameters:
            raise UserError(
                f"projector.dim={self.dim} is wider than the {parameters} attributable parameters; "
                f"choose projector.dim <= {parameters}, projector=identity, or more model.parameters"
            )
        return self.dim

    def __call__(self, gradients: Gradients, tables: "Tables | None" = None) -> Float[Tensor, "b k"]:
        """P of each sample's gradient.

        Args:
            gradients: by parameter name, [b, *shape of the parameter].
            tables: keeps the random tables of earlier calls. Without it they are drawn again, with the same numbers.
        """
        floats = {name: at_least_float32(g) for name, g in gradients.items()}
        return PROJECTORS[self.kind](floats, self.dim, self.seed, tables or Tables())


class Tables:
    """The random tables that batches share. A worker owns the object, which keeps tables up to a limit.

    Each table is a function of its arguments alone, so an empty `Tables` gives the same numbers, but more slowly.

    Attributes:
        coordinates: see `mask_coordinates`.
        buckets: see `sketch_buckets`; a table has 8 bytes per coordinate, so only the last one is kept.
        kronecker_factors: see `kronecker_factors`.
    """

    def __init__(self) -> None:
        self.coordinates = lru_cache(maxsize=8)(mask_coordinates)
        self.buckets = lru_cache(maxsize=1)(sketch_buckets)
        self.kronecker_factors = lru_cache(maxsize=4096)(kronecker_factors)
        self._small_signs = lru_cache(maxsize=4096)(signs)

    def signs(
        self, seed: int, name: str, rows: range, dim: int, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "rows k"]:
        """`numerics.signs`; matrices of fewer than `SMALL` signs are kept, at most half a gigabyte in all."""
        draw = self._small_signs if len(rows) * dim < SMALL else signs
        return draw(seed, name, rows, dim, dtype, device)


def identity(gradients: Gradients, dim: int, seed: int, tables: Tables) -> Float[Tensor, "b k"]:
    """phi = g."""
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def mask(gradients: Gradients, dim: int, seed: int, tables: Tables) -> Float[Tensor, "b k"]:
    """The k coordinates with the smallest hashes, in the order of the hashes, so that a smaller k is a prefix."""
    flat = identity(gradients, dim, seed, tables)
    hashed = torch.cat([hashes(seed, name, g[0].numel(), g.device) for name, g in gradients.items()])
    return flat[:, hashed.argsort(stable=True)[:dim]] * (len(hashed) / dim) ** 0.5


def mask_coordinates(
    sizes: tuple[tuple[str, int], ...], dim: int, seed: int, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """By parameter: the flat positions that `mask` keeps, and their columns of phi.

    Args:
        sizes: name and number of scalars of every parameter, in the model's order.
    """
    smallest = torch.cat([hashes(seed, name, size, device) for name, size in sizes]).argsort(stable=True)[:dim]
    start, coordinates = 0, {}
    for name, size in sizes:
        column = ((smallest >= start) & (smallest < start + size)).nonzero()[:, 0]
        coordinates[name] = (smallest[column] - start, column)
        start += size
    return coordinates


def rademacher(gradients: Gradients, dim: int, seed: int, tables: Tables) -> Float[Tensor, "b k"]:
    """Dense signs d_i R[i mod m, j] e[i div m, j] / sqrt(k): d by coordinate, R shared, e by block of m coordinates.

    Two rows of one P are uncorrelated, because every row has its own d_i. The stated variance needs nothing more, and
    only R has m k signs. Column j does not depend on k.
    """
    first = next(iter(gradients.values()))
    total, kind = first.new_zeros(len(first), dim), (first.dtype, first.device)
    shared = tables.signs(seed, "every block", range(BLOCK_ROWS), dim, *kind)
    for name, g in zip(gradients, (g.flatten(1) for g in gradients.values()), strict=True):
        own = tables.signs(seed, name, range(-(-g.shape[1] // 32)), 32, *kind).flatten()
        for start in range(0, g.shape[1], BLOCK_ROWS * BLOCKS_AT_ONCE):
            span = slice(start, start + BLOCK_ROWS * BLOCKS_AT_ONCE)
            cut = _in_blocks(g[:, span] * own[: g.shape[1]][span])
            blocks = range(start // BLOCK_ROWS, start // BLOCK_ROWS + cut.shape[1])
            by_block = tables.signs(seed, f"{name} blocks", blocks, dim, *kind)
            total += (cut @ shared[: cut.shape[2]] * by_block).sum(1)
    return total / dim**0.5


def _in_blocks(g: Float[Tensor, "b d"]) -> Float[Tensor, "b blocks rows"]:
    """`g` cut into blocks of `BLOCK_ROWS` coordinates; the last of several blocks is padded with zeros."""
    rows = min(BLOCK_ROWS, g.shape[1])
    return torch.nn.functional.pad(g, (0, -g.shape[1] % rows)).unflatten(1, (-1, rows))


def sketch(gradients: Gradients, dim: int, seed: int, tables: Tables) -> Float[Tensor, "b k"]:
    """Each coordinate is added to its bucket: one of k buckets if its sign is +, one of k other buckets if it is -."""
    first = next(iter(gradients.values()))
    total = first.new_zeros(len(first), 2 * dim)
    vectors, rest = ([n for n, g in gradients.items() if (g.dim() == 2) == small] for small in (True, False))
    layout = tuple(
        (name, gradients[name].shape[1:], tuple(memory_order(gradients[name]))) for name in (*vectors, *rest)
    )
    buckets = tables.buckets(layout, dim, seed, first.device)
    if vectors:  # joined, because they are many and small
        joined = torch.cat([buckets[name] for name in vectors])
        total.scatter_add_(1, joined.expand(len(first), -1), torch.cat([gradients[name] for name in vectors], 1))
    for name in rest:
        total.scatter_add_(1, buckets[name].expand(len(first), -1), in_memory_order(gradients[name]))
    return total[:, dim:] - total[:, :dim]


def sketch_buckets(
    layout: tuple[tuple[str, torch.Size, tuple[int, ...]], ...], dim: int, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """By parameter: the bucket in 0 ... 2 k - 1 of each coordinate, in the order of memory.

    Args:
        layout: name, shape and `memory_order` of every parameter's gradient.
    """
    buckets = {}
    for name, shape, order in layout:
        h = hashes(seed, name, shape.numel(), device)
        bucket = ((h >> 8) % dim).add_(h & 1, alpha=dim).view(shape)
        buckets[name] = bucket.permute([d - 1 for d in order]).flatten()
    return buckets


def kronecker(gradients: Gradients, dim: int, seed: int, tables: Tables) -> Float[Tensor, "b k"]:
    """A sketch of S_o^T G S_i of every matrix, and of every vector unchanged."""
    narrow = {
        n: two_sided(g, *tables.kronecker_factors(n, g.shape[1:], seed, g.dtype, g.device)) if g.dim() > 2 else g
        for n, g in gradients.items()
    }
    return sketch(narrow, dim, seed, tables)


def two_sided(
    g: Float[Tensor, "b o ..."], left: Float[Tensor, "o p"], right: Float[Tensor, "i q"]
) -> Float[Tensor, "b p q"]:
    """S_o^T G S_i, with G as [o, everything else], and entries of S that are +-1 / sqrt(number of columns).

    Var<S_o^T G S_i, S_o^T H S_i> = U / p + V / q + W / (p q), with U = 1/2 sum_{a != b} (C_ab + C_ba)^2 of C = G H^T, V
    the same of H^T G, and W = 1/4 sum_{a != b, c != d} (H_ac G_bd + H_ad G_bc + H_bc G_ad + H_bd G_ac)^2. The variance
    is largest for gradients of a single position, which have rank 1: U and V are then about 2 |G|^4. For comparison,
    the variance of `rademacher` is then 2 |G|^4 / k.
    """
    return DenseGradient(g).two_sided(left, right)


def kronecker_factors(
    name: str, shape: torch.Size, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "o p"], Float[Tensor, "i q"]]:
    """S_o and S_i of a matrix of `shape`; for a side with at most `SIDE` entries, S is the identity."""

    def side(which: str, n: int) -> Tensor:
        if n <= SIDE:
            return torch.eye(n, dtype=dtype, device=device)
        return signs(seed, f"{name} {which}", range(n), SIDE, dtype, device) / SIDE**0.5

    return side("left", shape[0]), side("right", math.prod(shape[1:]))


PROJECTORS: dict[str, Callable[[Gradients, int, int, Tables], Tensor]] = {
    "identity": identity,
    "mask": mask,
    "rademacher": rademacher,
    "sketch": sketch,
    "kronecker": kronecker,
}
