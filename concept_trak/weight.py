"""What a sample is weighed by: a state's gradient by its gate, a finished score by its weight.

| gate        | a(s), in [0, 1]: how much a state counts in phi                                                |
|-------------|------------------------------------------------------------------------------------------------|
| one         | 1                                                                                              |
| caption_fit | clip(a, 0, 1),  a = <eps - eps_neg, eps_c - eps_neg> / |eps_c - eps_neg|^2                     |

| weight        | w_i, by which the score of a training sample is multiplied                                   |
|---------------|----------------------------------------------------------------------------------------------|
| one           | 1                                                                                            |
| squared_error | sum over states of mean (eps - eps_theta)^2, DAS's own (Lin et al. 2024)                     |

Both are functions (probe, state, prediction, v) -> [b]; a weight's values are added up over the states.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.denoiser import Prediction
from concept_trak.probe import Probe
from concept_trak.state import State, required

Weighing = Callable[[Probe, State, Prediction, Tensor], Tensor]


def one(probe: Probe, state: State, seen: Prediction, v: Tensor) -> Float[Tensor, " b"]:
    return torch.ones(len(v), dtype=v.dtype, device=v.device)


def caption_fit(probe: Probe, state: State, seen: Prediction, v: Tensor) -> Float[Tensor, " b"]:
    """The least-squares step a along the caption's direction d = eps_c - eps_neg, clipped to [0, 1]; 0 where d is 0.

    a = argmin |eps - eps_neg - a d|^2 says how far the picture goes the way its caption points: 1 in expectation where
    it shows what the caption says, since then E[eps | x_t, c] = eps_c; 0 or less where it shows something else.
    `caption_reward` has d in its v = -2 w d / D, so that no further evaluation is needed.
    """
    noise = required(state.noise, "noise", "caption_fit")
    d = (v * (-v[0].numel() / (2 * probe.strength))).flatten(1)
    length = d.square().sum(1)
    along = ((noise - seen.eps).flatten(1) * d).sum(1)  # <eps - eps_neg, d> = <eps - eps_c, d> + |d|^2
    return torch.where(length > 0, 1 + along / length, 0.0).clamp(0, 1)


def squared_error(probe: Probe, state: State, seen: Prediction, v: Tensor) -> Float[Tensor, " b"]:
    """mean (eps - eps_theta)^2 of each sample."""
    noise = required(state.noise, "noise", "squared_error")
    return (noise - seen.eps).square().flatten(1).mean(1)


GATES: dict[str, Weighing] = {"one": one, "caption_fit": caption_fit}
WEIGHTS: dict[str, Weighing] = {"one": one, "squared_error": squared_error}
