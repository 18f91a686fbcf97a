"""What a finished score is multiplied by: w_i, from what the training sample's own states say of it.

A weight adds numbers up over the states (`at`) and is made of the sums (`of`). A new weight is a new row of `WEIGHTS`.

| weight        | w_i                                                                                    |
|---------------|----------------------------------------------------------------------------------------|
| one           | 1                                                                                      |
| squared_error | sum_t mean (eps - eps_theta)^2, DAS's own (Lin et al. 2024)                            |
| caption_fit   | clip(a, 0, 1),  a = sum_t <eps - eps_neg, eps_c - eps_neg> / sum_t |eps_c - eps_neg|^2 |
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.denoiser import Prediction
from concept_trak.probe import Probe
from concept_trak.state import State, required


class Weight(NamedTuple):
    """`at(probe, state, prediction, v)` is what one state adds, [b, n]; `of(sums)` the weight, [b]."""

    at: Callable[[Probe, State, Prediction, Tensor], Tensor]
    of: Callable[[Tensor], Tensor]


def nothing(probe: Probe, state: State, seen: Prediction, v: Tensor) -> Float[Tensor, "b 0"]:
    return torch.zeros(len(v), 0)


def squared_error(probe: Probe, state: State, seen: Prediction, v: Tensor) -> Float[Tensor, "b 1"]:
    """mean (eps - eps_theta)^2 of each sample."""
    noise = required(state.noise, "noise", "squared_error")
    return (noise - seen.eps).square().flatten(1).mean(1, keepdim=True)


def caption_fit(probe: Probe, state: State, seen: Prediction, v: Tensor) -> Float[Tensor, "b 2"]:
    """<eps - eps_neg, d> and |d|^2, with d = eps_c - eps_neg: the least-squares step a along the caption's direction.

    a = argmin |eps - eps_neg - a d|^2 says how far the picture goes the way its caption points: 1 in expectation where
    it shows what the caption says, since then E[eps | x_t, c] = eps_c; 0 or less where it shows something else.
    `caption_reward` has d in its v = -2 w d / D, so that no further evaluation is needed.
    """
    noise = required(state.noise, "noise", "caption_fit")
    d = (v * (-v[0].numel() / (2 * probe.strength))).flatten(1)
    length = d.square().sum(1)
    return torch.stack([((noise - seen.eps).flatten(1) * d).sum(1) + length, length], 1)


def _one(sums: Tensor) -> Tensor:
    return torch.ones(len(sums))


def _sum(sums: Tensor) -> Tensor:
    return sums[:, 0]


def _share(sums: Tensor) -> Tensor:
    """The quotient of two sums, clipped to [0, 1]; 0 where the second is."""
    return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], 0.0).clamp(0, 1)


WEIGHTS: dict[str, Weight] = {
    "one": Weight(nothing, _one),
    "squared_error": Weight(squared_error, _sum),
    "caption_fit": Weight(caption_fit, _share),
}
