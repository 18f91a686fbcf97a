"""Muon (Jordan et al. 2024) in float32: the step of a matrix is its momentum with all singular values brought near 1.

torch's own works in bfloat16, which a CPU without instructions for it multiplies 13 times slower than float32: there a
step of the benchmark's transformer took 2.5 s, nearly all of it in these products.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5: five of these bring any singular value in 0.01 ... 1 to 0.68 ... 1.13 (ibid.)."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with steps of AdamW's size: their root mean square is about 0.2 lr.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float | Tensor, weight_decay: float = 0.01, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.dim() != 2]
        if shapes:
            raise ValueError(
                f"Muon steps matrices only, and one parameter has the shape {shapes[0]}; leave it to AdamW"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """W <- (1 - lr decay) W - 0.2 lr sqrt(max(rows, columns)) orthogonal(g + momentum (m - g)).

        Matrices of one shape are orthogonalised together: on a GPU small ones cost the launches and not the products.
        """
        assert closure is None, "no step of this optimizer evaluates the loss again"
        for group in self.param_groups:
            for alike in _by_shape(p for p in group["params"] if p.grad is not None):
                means = [self.state[weight].setdefault("mean", torch.zeros_like(weight)) for weight in alike]
                for mean, weight in zip(means, alike, strict=True):
                    mean.lerp_(weight.grad, 1 - group["momentum"])
                slopes = torch.stack([w.grad for w in alike if w.grad is not None])
                ahead = slopes.lerp(torch.stack(means), group["momentum"])
                size = 0.2 * group["lr"] * math.sqrt(max(alike[0].shape))
                for weight, moved in zip(alike, orthogonal(ahead), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(size * moved)


def _by_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    found: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        found.setdefault(weight.shape, []).append(weight)
    return list(found.values())


def orthogonal(matrix: Float[Tensor, "*n rows columns"], rounds: int = 5) -> Float[Tensor, "*n rows columns"]:
    """Each matrix with its singular vectors kept and its singular values near 1, by Newton and Schulz's iteration."""
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
