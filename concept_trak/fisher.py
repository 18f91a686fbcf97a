"""The curvature: K = sum_i phi_i phi_i^T, and z = (K + lambda I)^-1 phi_q with lambda = damping tr(K) / k.

n training samples, k features, m queries. Sums are float32 products of float32 features; the solve is float64.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
    return Gram(phi.T @ phi, len(phi))


def total(grams: Iterable[Gram]) -> Gram:
    """The sum in the order given, one at a time in memory; a fixed order makes it the same bytes every time."""
    return reduce(Gram.__add__, grams)


class Solved(NamedTuple):
    """z of each query, and the relative residual |(K + lambda I) z - phi_q| / |phi_q|."""

    z: Float[Tensor, "m k"]
    residual: Float[Tensor, " m"]


def solve(matrix: Float[Tensor, "k k"], lam: float, queries: Float[Tensor, "m k"]) -> Solved:
    """Primal form, by Cholesky: for n >= k.

    Raises:
        ValueError: K + lambda I is not positive definite, so lambda is too small for the rank of K.
    """
    shifted = matrix.double() + lam * torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if info.item() != 0:
        raise ValueError(f"K + lambda I is not positive definite at lambda = {lam:.3g}: raise `damping`")
    q = queries.double()
    z = torch.cholesky_solve(q.T, factor).T
    return Solved(z, _residual(z @ shifted, q))


def solve_dual(phi: Float[Tensor, "n k"], lam: float, queries: Float[Tensor, "m k"]) -> Solved:
    """The same z for n < k: z = (q - Phi^T (Phi Phi^T + lambda I)^-1 Phi q) / lambda (Woodbury 1950), lambda > 0."""
    if lam <= 0:
        raise ValueError(f"lambda = {lam:.3g} with fewer samples than features: K is singular, raise `damping`")
    rows, q = phi.double(), queries.double()
    inner = solve(rows @ rows.T, lam, q @ rows.T).z
    z = (q - inner @ rows) / lam
    return Solved(z, _residual(z @ rows.T @ rows + lam * z, q))


def sweep(
    phi: Float[Tensor, "n k"], queries: Float[Tensor, "m k"], dampings: Sequence[float]
) -> Iterator[Float[Tensor, "n m"]]:
    """Phi (K + lambda I)^-1 q for each damping, float64, from one eigendecomposition of Phi Phi^T: n in the thousands.

    Phi (Phi^T Phi + lambda I)^-1 = (Phi Phi^T + lambda I)^-1 Phi; the eigenvalues of K are those of Phi Phi^T.
    """
    rows = phi.double()
    value, vector = torch.linalg.eigh(rows @ rows.T)
    turned = vector.T @ (rows @ queries.double().T)
    for damping in dampings:
        lam = damping * value.clamp_min(0).sum() / phi.shape[1]
        yield vector @ (turned / (value.clamp_min(0) + lam)[:, None])


def _residual(left: Tensor, q: Tensor) -> Tensor:
    return (left - q).norm(dim=1) / q.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
