"""What the finished score of a training sample is multiplied by.

| weight        | w_i                                                                                          |
|---------------|----------------------------------------------------------------------------------------------|
| one           | 1                                                                                            |
| squared_error | sum over states of mean (eps - eps_theta)^2, DAS's own (Lin et al. 2024)                     |

Each is a function (state, prediction) -> [b], whose values are added up over the states.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.denoiser import Prediction
from concept_trak.state import State, required

Weighing = Callable[[State, Prediction], Tensor]


def one(state: State, seen: Prediction) -> Float[Tensor, " b"]:
    return torch.ones(len(seen.eps), dtype=seen.eps.dtype, device=seen.eps.device)


def squared_error(state: State, seen: Prediction) -> Float[Tensor, " b"]:
    """mean (eps - eps_theta)^2 of each sample."""
    noise = required(state.noise, "noise", "squared_error")
    return (noise - seen.eps).square().flatten(1).mean(1)


WEIGHTS: dict[str, Weighing] = {"one": one, "squared_error": squared_error}
