"""Which way to point: v(s) = dL/d(eps_theta) for every loss of the family, constants included.

Every loss touches theta only through eps_theta (its targets are stop-gradients), so its gradient is J(s)^T v(s). A
direction gets the state, whose x_t requires gradients, and the prediction made there with its graph; it returns v,
detached. D is the number of elements of x_t. Signs follow from v being the derivative of the loss and are never
flipped by hand.

| direction               | loss, mean over the D elements                              |
|-------------------------|-------------------------------------------------------------|
| denoising_error         | (eps - eps_theta)^2                                   TRAK  |
| prediction              | eps_theta^2                                           D-TRAK |
| prediction_sign         | |eps_theta|         DAS as in the Concept-TRAK authors' code |
| reconstruction_reward   | (sg[eps_theta + grad_x r] - eps_theta)^2, r = mean (x_0hat - x_0)^2 |
| concept_reward          | (sg[eps_c + w (eps_c - eps_c-)] - eps_c)^2                  |
| caption_reward          | the same with the sample's own caption against the model's negative |
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.denoiser import Condition, Denoiser, Prediction, same
from concept_trak.probe import Probe
from concept_trak.state import State, required

Direction = Callable[[Denoiser, State, Prediction, Probe], Tensor]

# Below this, eps_c - eps_c- is rounding of one evaluation in two batch positions, not a direction (relative to eps_c).
ROUNDING = 1e-5


def denoising_error(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Float[Tensor, "b c h w"]:
    """v = 2 (eps_theta - eps) / D (TRAK's output function for diffusion, Park et al. 2023)."""
    noise = required(state.noise, "noise", "denoising_error")
    return 2 * (seen.eps.detach() - noise) / noise[0].numel()


def prediction(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Float[Tensor, "b c h w"]:
    """v = 2 eps_theta / D (D-TRAK, Zheng et al. 2024)."""
    return 2 * seen.eps.detach() / seen.eps[0].numel()


def prediction_sign(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Float[Tensor, "b c h w"]:
    """v = sign(eps_theta) / D.

    The DAS paper and its code differ; this is the variant the Concept-TRAK authors compare with.
    """
    return seen.eps.detach().sign() / seen.eps[0].numel()


def reconstruction_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Float[Tensor, "b c h w"]:
    """v = -2 grad_{x_t} r / D with r = mean (x_0hat - x_0)^2, through the network (DPS; Concept-TRAK's train side)."""
    x_0 = required(state.batch.x_0, "x_0", "reconstruction_reward")
    reward = (seen.x_0 - x_0).square().flatten(1).mean(1).sum()
    (slope,) = torch.autograd.grad(reward, state.x_t, retain_graph=True)
    return -2 * slope / x_0[0].numel()


def concept_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Float[Tensor, "b c h w"]:
    """v = -2 w (eps_c - eps_c-) / D, c- the concept's own `without` (Concept-TRAK's query side)."""
    return _contrast(denoiser, state, seen, required(state.batch.without, "without", "concept_reward"), probe)


def caption_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Float[Tensor, "b c h w"]:
    """v = -2 w (eps_c - eps_neg) / D: the sample's own caption against the model's negative."""
    return _contrast(denoiser, state, seen, state.batch.negative, probe)


def _contrast(denoiser: Denoiser, state: State, seen: Prediction, against: Condition, probe: Probe) -> Tensor:
    """-2 w (eps_c - eps_against) / D, zero where the two conditions are equal or their difference is rounding."""
    with torch.no_grad():
        other = denoiser(state.x_t, state.t, against).eps
    eps = seen.eps.detach()
    difference = eps - other
    small = difference.flatten(1).norm(dim=1) < ROUNDING * eps.flatten(1).norm(dim=1)
    void = small | same(state.batch.cond, against)
    difference = difference.masked_fill(void[:, None, None, None], 0.0)
    return -2 * probe.strength * difference / eps[0].numel()


DIRECTIONS: dict[str, Direction] = {
    f.__name__: f
    for f in (denoising_error, prediction, prediction_sign, reconstruction_reward, concept_reward, caption_reward)
}
