"""The numbers of one training run, and what follows from them: its target, its times, its optimizers, their rates.

Muon (Jordan et al. 2024) in float32: the step of a matrix is its momentum with all singular values brought near 1.

torch's own works in bfloat16, which a CPU without instructions for it multiplies 13 times slower than float32: there a
step of the benchmark's transformer took 2.5 s, nearly all of it in these products.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def epsilon(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise (Ho et al. 2020, eq. 14)."""
    return eps


def velocity(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x_0 (Salimans and Ho 2022): near pure noise it asks for the image, not for its input."""
    return alpha * eps - sigma * x_0


TARGETS = {"epsilon": epsilon, "v_prediction": velocity}
MIDDLE = (0.1, 0.7)
"""Of the times: below, an image is all but there; above, all but noise."""
MUON = 5.0
"""Muon's rate over AdamW's; its steps are scaled to AdamW's size."""
INNER = 64
"""Least side of a matrix inside a network; inputs (pixels, one patch) and outputs have a smaller one."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of one run."""

    seed: int = 0
    steps: int = 6000
    batch: int = 16
    learning_rate: float = 1.2e-3
    """Peak of AdamW's rate: a linear rise over `warm_up` steps, then half a cosine down to 0."""
    warm_up: int = 100
    decay: float = 0.998
    """Of the moving average of the weights, which is what is shipped; smaller in the first steps."""
    clip: float = 1.0
    """Largest Euclidean norm of a step's gradient."""
    prediction_type: str = "v_prediction"
    """A row of `TARGETS`, by the name diffusers' schedulers give it."""
    optimizer: str = "adamw"
    """adamw, or muon for the matrices inside the network (see `optimizers`)."""
    focus: float = 0.0
    """Share of a batch whose times are drawn from `MIDDLE` alone, where it is decided what an image shows."""

    def __post_init__(self) -> None:
        if not 0 < self.warm_up < self.steps:
            raise ValueError(f"warm_up={self.warm_up}, steps={self.steps}: expected 0 < warm_up < steps")
        if self.prediction_type not in TARGETS:
            raise ValueError(f"prediction_type={self.prediction_type!r}: expected one of {', '.join(TARGETS)}")
        if self.optimizer not in ("adamw", "muon") or not 0 <= self.focus <= 1:
            raise ValueError(
                f"optimizer={self.optimizer!r}, focus={self.focus}: expected adamw or muon, and a share in 0 ... 1"
            )
        if self.batch < 1 or self.learning_rate <= 0 or not 0 <= self.decay < 1:
            raise ValueError(
                f"batch={self.batch}, learning_rate={self.learning_rate}, decay={self.decay}: "
                "expected batch >= 1, learning_rate > 0 and 0 <= decay < 1"
            )


def optimizers(network: nn.Module, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """What takes the steps, each with the peak of its rate.

    Muon (Jordan et al. 2024) orthogonalises the update of a matrix, so that its weak directions learn as fast as its
    strong ones. Here that decides: a colour is a strong direction and learnt at once, a shape a weak one. Inputs,
    outputs and everything that is no matrix stay with AdamW.
    """
    device = next(network.parameters()).device

    def at(peak: float) -> Tensor:
        """A rate that a captured step reads (`loop.py`)."""
        return torch.tensor(peak, device=device)

    inner = [m.weight for m in network.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) >= INNER]
    inner = [] if recipe.optimizer == "adamw" else inner
    named = {id(weight) for weight in inner}
    rest = [p for p in network.parameters() if id(p) not in named]
    cuda = device.type == "cuda"
    usual = torch.optim.AdamW(rest, lr=at(recipe.learning_rate), capturable=cuda, foreach=cuda)
    found: list[tuple[torch.optim.Optimizer, float]] = [(usual, recipe.learning_rate)]
    if inner:
        peak = MUON * recipe.learning_rate
        found.insert(0, (Muon(inner, lr=at(peak)), peak))
    return found


def times(count: int, share: float, number: int, draw: torch.Generator) -> Int[Tensor, " number"]:
    """`number` times in 0 ... count - 1, uniform; about `share` of them from `MIDDLE` (in shares of count) instead."""
    if share == 0:
        return torch.randint(count, (number,), generator=draw)
    inside, where = torch.rand(number, generator=draw) < share, torch.rand(number, generator=draw)
    low, high = MIDDLE
    return (count * torch.where(inside, low + where * (high - low), where)).long()


def rate(step: int, recipe: Recipe) -> float:
    """The learning rate of a step, as a share of its peak, in (0, 1]."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)))


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
