"""The optimizers of a training run and the schedule of their rates.

This is Muon (Jordan et al. 2024) in float32: the step of a matrix is its momentum with all singular values near 1.
`torch.optim.Muon` multiplies in bfloat16, which is 13 times slower than float32 on a CPU without bfloat16 instructions:
one step of the benchmark's transformer took 2.5 s there, nearly all of it in these products.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.evaluation.training.settings import TrainConfig

MUON = 5.0
"""Muon's rate divided by AdamW's; Muon's steps are scaled to the size of AdamW's."""
INNER = 64
"""Smallest side of a matrix inside a network. The matrices of inputs (pixels, one patch) and outputs have a smaller
side."""


def optimizers(network: nn.Module, config: TrainConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """The optimizers of a run, each with the peak of its rate.

    Muon (Jordan et al. 2024) orthogonalizes the update of a matrix, so that its weak directions learn as fast as its
    strong ones. This matters for two factors: a colour is a strong direction and learnt early, a shape is a weak one.
    AdamW trains inputs, outputs and all parameters that are not matrices.
    """
    device = next(network.parameters()).device

    def rate(peak: float) -> Tensor:
        """The rate as a tensor, which a captured step can read (`loop.py`)."""
        return torch.tensor(peak, device=device)

    inner = [m.weight for m in network.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) >= INNER]
    inner = [] if config.optimizer == "adamw" else inner
    inner_ids = {id(weight) for weight in inner}
    rest = [p for p in network.parameters() if id(p) not in inner_ids]
    cuda = device.type == "cuda"
    adamw = torch.optim.AdamW(rest, lr=rate(config.learning_rate), capturable=cuda, foreach=cuda)
    if not inner:
        return [(adamw, config.learning_rate)]
    peak = MUON * config.learning_rate
    return [(Muon(inner, lr=rate(peak)), peak), (adamw, config.learning_rate)]


def rate_share(step: int, config: TrainConfig) -> float:
    """The learning rate of a step as a share of its peak, in (0, 1].

    After the peak it equals `transformers.get_cosine_schedule_with_warmup`. That schedule starts its warm-up at a rate
    of 0, this one at 1 / warm_up, with which the shipped models were trained.
    """
    if step < config.warm_up:
        return (step + 1) / config.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - config.warm_up) / (config.steps - config.warm_up)))


QUINTIC = (3.4445, -4.7750, 2.0315)
"""(a, b, c) of x -> a x + b x^3 + c x^5. Five applications map a singular value in 0.01 ... 1 to 0.68 ... 1.13
(Jordan et al. 2024)."""


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum, with steps of AdamW's size: their root mean square is about 0.2 lr.

    All parameters must be matrices.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float | Tensor, weight_decay: float = 0.01, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.dim() != 2]
        assert not shapes, f"Muon needs matrices, and a parameter has the shape {shapes[0]}: use AdamW for it"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """W <- (1 - lr decay) W - 0.2 lr sqrt(max(rows, columns)) orthogonal(g + momentum (m - g)).

        Matrices of the same shape are orthogonalized together, because on a GPU the launch of a small product costs
        more than the product.
        """
        assert closure is None, "this optimizer does not evaluate the loss again"
        for group in self.param_groups:
            for matrices in _by_shape(p for p in group["params"] if p.grad is not None):
                gradients = [w.grad for w in matrices if w.grad is not None]
                means = [self.state[weight].setdefault("mean", torch.zeros_like(weight)) for weight in matrices]
                for mean, gradient in zip(means, gradients, strict=True):
                    mean.lerp_(gradient, 1 - group["momentum"])
                momenta = torch.stack(gradients).lerp(torch.stack(means), group["momentum"])
                size = 0.2 * group["lr"] * math.sqrt(max(matrices[0].shape))
                for weight, update in zip(matrices, orthogonal(momenta), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(size * update)


def _by_shape(weights: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        groups.setdefault(weight.shape, []).append(weight)
    return list(groups.values())


def orthogonal(matrix: Float[Tensor, "*n rows columns"], rounds: int = 5) -> Float[Tensor, "*n rows columns"]:
    """Each matrix with its own singular vectors and with singular values near 1, by the Newton-Schulz iteration."""
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
