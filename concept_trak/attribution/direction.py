"""Directions: v(s) = dL/d(eps_theta) for every loss of the family, constants included.

Every loss depends on theta only through eps_theta (its targets are stop-gradients), so its gradient is J(s)^T v(s). A
direction takes the state, whose x_t requires gradients, and the prediction there with its graph. It returns v,
detached, and the weight of the state for each sample, which is 1 except for `caption_fit`. D is the number of elements
of x_t. v is the derivative of the loss, so no sign is flipped by hand.

| direction               | loss, mean over the D elements                              |
|-------------------------|-------------------------------------------------------------|
| denoising_error         | (eps - eps_theta)^2                                   TRAK  |
| prediction              | eps_theta^2                                           D-TRAK |
| prediction_sign         | |eps_theta|         DAS as in the Concept-TRAK authors' code |
| reconstruction_reward   | (sg[eps_theta + grad_x r] - eps_theta)^2, r = mean (x_0hat - x_0)^2 |
| concept_reward          | (sg[eps_c + w (eps_c - eps_c-)] - eps_c)^2                  |
| caption_reward          | the same with the sample's own caption against the model's negative |
| caption_fit             | the same against m negatives, each as far as the picture fits the caption and not it |
| example_reward          | (x_0hat - m)^2, m the mean of a concept's example images       (ours) |
| classifier_reward       | -log p(y | x_0hat) of a classifier's class y, not a mean       (ours) |

Weights multiply the finished score of a training sample.

| weight        | w_i                                                                                          |
|---------------|----------------------------------------------------------------------------------------------|
| one           | 1                                                                                            |
| squared_error | sum over states of mean (eps - eps_theta)^2, DAS's own (Lin et al. 2024)                     |

A weight is a function (state, prediction) -> [b], whose values are summed over the states.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser, Prediction, concat_conditions, equal_conditions
from concept_trak.attribution.state import Direction, Probe, State, required

DirectionFunction = Callable[[Denoiser, State, Prediction, Probe], Direction]
# If eps_c - eps_c- is below this share of eps_c, it is rounding of one evaluation at two batch positions.
ROUNDING = 1e-5


def denoising_error(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = 2 (eps_theta - eps) / D (TRAK's output function for diffusion, Park et al. 2023)."""
    noise = required(state.noise, "noise", "denoising_error")
    return _whole(2 * (seen.eps.detach() - noise) / noise[0].numel())


def squared_prediction(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = 2 eps_theta / D (D-TRAK, Zheng et al. 2024)."""
    return _whole(2 * seen.eps.detach() / seen.eps[0].numel())


def prediction_sign(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = sign(eps_theta) / D.

    The DAS paper and its code differ; this is the variant the Concept-TRAK authors compare with.
    """
    return _whole(seen.eps.detach().sign() / seen.eps[0].numel())


def reconstruction_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = -2 grad_{x_t} r / D with r = mean (x_0hat - x_0)^2, through the network (DPS; Concept-TRAK's train side)."""
    x_0 = required(state.batch.x_0, "x_0", "reconstruction_reward")
    elements = x_0[0].numel()
    # The gradient of the sum, because that of the mean is below float16's smallest number inside the network.
    (slope,) = torch.autograd.grad((seen.x_0 - x_0).square().sum(), state.x_t, retain_graph=True)
    return _whole(-2 * slope / elements**2)


def concept_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = -2 w (eps_c - eps_c-) / D with c- the concept's second condition (Concept-TRAK's query side)."""
    without = required(state.batch.without, "without", "concept_reward")
    (difference,), _ = _differences(denoiser, state, seen, [without])
    return _whole(-2 * probe.strength * difference / difference[0].numel())


def caption_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = -2 w (eps_c - eps_neg) / D: the sample's own caption against the model's negative."""
    (difference,), _ = _differences(denoiser, state, seen, [state.batch.negative])
    return _whole(-2 * probe.strength * difference / difference[0].numel())


def caption_fit(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = -2 w / (m D) sum_j a_j d_j with d_j = eps_c - eps_j, and fit = sum_j a_j |d_j| / sum_j |d_j|.

    a_j = argmin_a |eps - eps_j - a d_j|^2, clipped to [0, 1], measures how far the picture is on the way from the
    negative c_j to its own caption c. Its expectation is 1 if the picture shows c, since then E[eps | x_t, c] = eps_c,
    and 0 if it shows c_j. So the parts of a caption that the picture does not show have no weight, and the weight of
    the state is the share that is left. If nothing is left, v is that of `caption_reward` with weight 0, so that the
    sample is not rejected for having no direction.

    The standard error of the least-squares coefficient a_j is s / |d_j| with s^2 = mean (eps - eps_c)^2. Above
    `probe.doubt` the model cannot tell which of the two captions the picture shows, as with initial weights, and a_j is
    set to 0. Without this limit such a model would rank by the words of the captions alone.
    """
    noise = required(state.noise, "noise", "caption_fit")
    d, others = _differences(denoiser, state, seen, [state.batch.negative, *state.batch.others])
    length = d.flatten(2).norm(dim=2)
    along = ((noise - others) * d).flatten(2).sum(2)
    unexplained = (noise - seen.eps.detach()).square().flatten(1).mean(1).sqrt()
    reliable = (length > 0) & (unexplained <= probe.doubt * length)
    a = torch.where(reliable, along / length.square(), 0.0).clamp(0, 1)
    share = torch.where((a > 0).any(0), a, 1.0)
    v = -2 * probe.strength * (_as_samples(share, d) * d).mean(0) / noise[0].numel()
    size = length.sum(0)
    return Direction(v, torch.where(size > 0, (a * length).sum(0) / size, 0.0))


def example_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = -(sigma / alpha) 2 (x_0hat - m) / D, m the mean of the sample's examples: L = mean (x_0hat(eps_theta) - m)^2.

    The reward -L is, up to constants, log N(m; x_0hat, s^2 I), the log-likelihood of the mean given x_0hat.

    In every family alpha x_0hat + sigma eps_theta = x_t, so x_0hat = (x_t - sigma eps_theta) / alpha, and by the chain
    rule dL/deps = (dx_0hat/deps)^T dL/dx_0hat = -(sigma / alpha) dL/dx_0hat. With x_0 in place of m this is v of
    `denoising_error` times (sigma / alpha)^2, so the query resembles training on the mean of the examples.
    """
    m = required(state.batch.target, "target", "example_reward")
    return _whole(_through_x_0(denoiser, state, 2 * (seen.x_0.detach() - m) / m[0].numel()))


def classifier_reward(denoiser: Denoiser, state: State, seen: Prediction, probe: Probe) -> Direction:
    """v = (sigma / alpha) grad_{x_0hat} log p(y | x_0hat), y the concept's class: L = -log p(y | x_0hat(eps_theta)).

    The chain rule is that of `example_reward`. The classifier takes x_0hat and not x_t, so it need not be trained on
    noise; at high t, x_0hat is blurred.
    """
    classifier = required(state.batch.classifier, "classifier", "classifier_reward")
    x_0 = seen.x_0.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(classifier(x_0).sum(), x_0)
    return _whole(_through_x_0(denoiser, state, -slope))


def _through_x_0(denoiser: Denoiser, state: State, slope: Tensor) -> Tensor:
    """dL/deps_theta from dL/dx_0hat."""
    return -denoiser.sigma[state.t].item() / denoiser.alpha[state.t].item() * slope


def _whole(v: Tensor) -> Direction:
    """A direction with the weight 1 for every sample."""
    return Direction(v, torch.ones(len(v), dtype=v.dtype, device=v.device))


@torch.no_grad()
def _differences(
    denoiser: Denoiser, state: State, seen: Prediction, against: Sequence[Condition]
) -> tuple[Float[Tensor, "m b c *space"], Float[Tensor, "m b c *space"]]:
    """(eps_c - eps_j, eps_j) for every condition j, from one batch. A difference is 0 if it is rounding or if the two
    conditions are equal."""
    m, b = len(against), len(state.x_t)
    x_t = torch.cat([state.x_t] * m)
    others = denoiser(x_t, state.t, reduce(concat_conditions, against)).eps.unflatten(0, (m, b))
    eps = seen.eps.detach()
    d = eps - others
    small = d.flatten(2).norm(dim=2) < ROUNDING * eps.flatten(1).norm(dim=1)
    void = small | torch.stack([equal_conditions(state.batch.cond, other) for other in against])
    return d.masked_fill(_as_samples(void, d), 0.0), others


def _as_samples(values: Shaped[Tensor, "m b"], d: Float[Tensor, "m b ..."]) -> Tensor:
    """One number for each sample, in a shape that broadcasts over the numbers of the sample."""
    return values.reshape(*values.shape, *[1] * (d.dim() - 2))


DIRECTIONS: dict[str, DirectionFunction] = {
    "denoising_error": denoising_error,
    "prediction": squared_prediction,
    "prediction_sign": prediction_sign,
    "reconstruction_reward": reconstruction_reward,
    "concept_reward": concept_reward,
    "caption_reward": caption_reward,
    "caption_fit": caption_fit,
    "example_reward": example_reward,
    "classifier_reward": classifier_reward,
}
WeightFunction = Callable[[State, Prediction], Tensor]


def uniform_weight(state: State, seen: Prediction) -> Float[Tensor, " b"]:
    return torch.ones(len(seen.eps), dtype=seen.eps.dtype, device=seen.eps.device)


def squared_error_weight(state: State, seen: Prediction) -> Float[Tensor, " b"]:
    """mean (eps - eps_theta)^2 of each sample."""
    noise = required(state.noise, "noise", "squared_error")
    return (noise - seen.eps).square().flatten(1).mean(1)


WEIGHTS: dict[str, WeightFunction] = {"one": uniform_weight, "squared_error": squared_error_weight}
