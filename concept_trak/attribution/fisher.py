"""The curvature: K = sum_i phi_i phi_i^T, and z = (K + lambda I)^-1 phi_q with lambda = damping tr(K) / k.

n training samples, k features, m queries. Sums are float32 products of float32 features; the solve is float64.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Num
from torch import Tensor

from concept_trak import UserError


@dataclass(frozen=True)
class Gram:
    """K over `count` samples, float32 [k, k]. Grams add."""

    matrix: Float[Tensor, "k k"]
    count: int

    @property
    def trace(self) -> float:
        """tr(K) = sum_i |phi_i|^2."""
        return self.matrix.diagonal().double().sum().item()

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(self.matrix + other.matrix, self.count + other.count)

    def damped(self, damping: float) -> float:
        """lambda = damping tr(K) / k: damping is relative to the mean eigenvalue."""
        return damping * self.trace / len(self.matrix)


def gram(phi: Float[Tensor, "n k"]) -> Gram:
    """K of features in memory, in one product."""
    return Gram(phi.T @ phi, len(phi))


ROWS = 1024  # rows of a product; with fewer, reading and writing K takes most of the time
PIECE = 256  # rows scaled at a time: 2 MB at k = 2048, which are still in the cache when they are read
PANEL = 256  # columns of K computed at a time, from the diagonal down


def stored_gram(blocks: Iterable[tuple[Num[Tensor, "n k"], Float32[Tensor, " n"]]]) -> Gram | None:
    """K of stored rows phi_i = scale_i unit_i, in blocks (unit, scale) of any size; None without blocks.

    Every product has `ROWS` rows, whatever the sizes of the blocks, so the sum depends only on the rows and their
    order. K is symmetric, so only the part on and below the diagonal is computed: half the work of a plain product.
    Memory does not grow with the rows. `gram` is the naive twin.
    """
    total: _GramSum | None = None
    for unit, scale in blocks:
        total = total or _GramSum(unit.shape[1])
        total.add(unit, scale)
    return total.gram() if total else None


class _GramSum:
    """The running sum of `stored_gram`, in one matrix and one buffer of rows."""

    def __init__(self, k: int) -> None:
        self._matrix, self._count = torch.zeros(k, k), 0
        self._rows, self._filled = torch.empty(ROWS, k), 0

    def add(self, unit: Num[Tensor, "n k"], scale: Float32[Tensor, " n"]) -> None:
        first = 0
        while first < len(unit):
            end = min(first + PIECE, first + ROWS - self._filled, len(unit))
            free = self._rows[self._filled : self._filled + end - first]
            torch.mul(unit[first:end], scale[first:end, None], out=free)
            self._filled, self._count, first = self._filled + end - first, self._count + end - first, end
            if self._filled == ROWS:
                self._multiply()

    def gram(self) -> Gram:
        """K with its upper half filled in place, because a copy of K may take gigabytes."""
        self._multiply()
        for panel in _panels(len(self._matrix)):
            corner = self._matrix[panel, panel]
            corner.copy_(corner.tril() + corner.tril(-1).T)
            self._matrix[panel, panel.stop :] = self._matrix[panel.stop :, panel].T
        return Gram(self._matrix, self._count)

    def _multiply(self) -> None:
        phi = self._rows[: self._filled]
        for panel in _panels(len(self._matrix)):
            self._matrix[panel.start :, panel].addmm_(phi[:, panel.start :].T, phi[:, panel])
        self._filled = 0


def _panels(k: int) -> Iterator[slice]:
    return (slice(first, min(first + PANEL, k)) for first in range(0, k, PANEL))


def sum_grams(grams: Iterable[Gram]) -> Gram:
    """The sum in the given order, one Gram at a time in memory. The same order gives the same bytes."""
    return reduce(Gram.__add__, grams)


class Solution(NamedTuple):
    """z of each query, and the relative residual |(K + lambda I) z - phi_q| / |phi_q|."""

    z: Float[Tensor, "m k"]
    residual: Float[Tensor, " m"]


@dataclass(frozen=True)
class Factor:
    """K + lambda I with its Cholesky factor, float64 [k, k]. It solves one query after another."""

    shifted: Float[Tensor, "k k"]
    cholesky: Float[Tensor, "k k"]

    def solve(self, queries: Float[Tensor, "m k"]) -> Solution:
        """z = (K + lambda I)^-1 q of every query."""
        q = queries.double()
        z = torch.cholesky_solve(q.T, self.cholesky).T
        return Solution(z, _residual(z @ self.shifted, q))


@dataclass(frozen=True)
class DualFactor:
    """The factor of Phi Phi^T + lambda I, for n < k, with the features Phi, float64."""

    rows: Float[Tensor, "n k"]
    inner: Factor
    lam: float

    def solve(self, queries: Float[Tensor, "m k"]) -> Solution:
        """z = (q - Phi^T (Phi Phi^T + lambda I)^-1 Phi q) / lambda of every query (Woodbury 1950)."""
        q = queries.double()
        z = (q - self.inner.solve(q @ self.rows.T).z @ self.rows) / self.lam
        return Solution(z, _residual(z @ self.rows.T @ self.rows + self.lam * z, q))


NO_FEATURES = "every feature is zero. Is the model trained, and does its prediction depend on the caption?"
"""Why a method ranks nothing where `ZeroFactor` solves: all scores are 0."""


class ZeroFactor:
    """The pseudo-inverse of K + lambda I where all features are zero. K and lambda are 0 then, and so is every z."""

    def solve(self, queries: Float[Tensor, "m k"]) -> Solution:
        """z = 0 of every query, with residual 0: the range of K, in which z solves the system, is empty."""
        return Solution(torch.zeros_like(queries, dtype=torch.float64), queries.new_zeros(len(queries)).double())


def factorize(matrix: Float[Tensor, "k k"], lam: float) -> Factor:
    """The Cholesky factor of K + lambda I.

    Raises:
        UserError: K + lambda I is not positive definite, so lambda is too small for the rank of K.
    """
    shifted = matrix.double() + lam * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if info.item() != 0:
        raise UserError(f"K + lambda I is not positive definite at lambda = {lam:.3g}: raise `damping`")
    return Factor(shifted, factor)


def factorize_dual(phi: Float[Tensor, "n k"], lam: float) -> DualFactor:
    """The factor of the dual form.

    Raises:
        UserError: lambda is not positive, or too small.
    """
    if lam <= 0:
        raise UserError(f"lambda = {lam:.3g} with fewer samples than features: K is singular, raise `damping`")
    rows = phi.double()
    return DualFactor(rows, factorize(rows @ rows.T, lam), lam)


def factorize_damped(
    gram: Gram, damping: float, phi: Callable[[], Float[Tensor, "n k"]]
) -> tuple[Factor | DualFactor | ZeroFactor, float]:
    """The factor of K + lambda I, and lambda = damping tr(K) / k; that of the dual form if n < k.

    If all features are zero, so is every z.

    Args:
        gram: K, with the number n of its samples.
        damping: relative to the mean eigenvalue of K.
        phi: returns all n features; only the dual form calls it.

    Raises:
        UserError: K + lambda I is not positive definite; raise the damping.
    """
    lam = gram.damped(damping)
    if gram.trace == 0:
        return ZeroFactor(), lam
    if gram.count < len(gram.matrix):
        return factorize_dual(phi(), lam), lam
    return factorize(gram.matrix, lam), lam


def solve(matrix: Float[Tensor, "k k"], lam: float, queries: Float[Tensor, "m k"]) -> Solution:
    """Primal form, by Cholesky: for n >= k. Raises UserError as `factorize` does."""
    return factorize(matrix, lam).solve(queries)


def solve_dual(phi: Float[Tensor, "n k"], lam: float, queries: Float[Tensor, "m k"]) -> Solution:
    """The same z for n < k and lambda > 0. Raises UserError as `factorize_dual` does."""
    return factorize_dual(phi, lam).solve(queries)


def solve_damped(
    gram: Gram, damping: float, queries: Float[Tensor, "m k"], phi: Callable[[], Float[Tensor, "n k"]]
) -> tuple[Solution, float]:
    """z = (K + lambda I)^-1 q of every query, and lambda; the arguments are those of `factorize_damped`."""
    factor, lam = factorize_damped(gram, damping, phi)
    return factor.solve(queries), lam


def sweep(
    phi: Float[Tensor, "n k"], queries: Float[Tensor, "m k"], dampings: Sequence[float]
) -> Iterator[Float[Tensor, "n m"]]:
    """Phi (K + lambda I)^-1 q for each damping, float64, from one eigendecomposition of Phi Phi^T (n in the thousands).

    Phi (Phi^T Phi + lambda I)^-1 = (Phi Phi^T + lambda I)^-1 Phi, and K has the nonzero eigenvalues of Phi Phi^T. If
    all features are zero, every score is zero.
    """
    rows = phi.double()
    value, vector = torch.linalg.eigh(rows @ rows.T)
    turned = vector.T @ (rows @ queries.double().T)
    for damping in dampings:
        shifted = value.clamp_min(0) + damping * value.clamp_min(0).sum() / phi.shape[1]
        yield vector @ torch.where(shifted > 0, 1 / shifted, 0)[:, None].mul(turned)


def _residual(left: Tensor, q: Tensor) -> Tensor:
    return (left - q).norm(dim=1) / q.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
