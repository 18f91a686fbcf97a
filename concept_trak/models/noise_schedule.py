"""The noise process of a pipeline, read from its scheduler: alpha and sigma at our times, and the prediction type.

    x_t = alpha_t x_0 + sigma_t eps,        alpha^2 = alphas_cumprod,  sigma^2 = 1 - alpha^2      (Ho et al. 2020)

Our times 0 ... 999 are spread evenly over the steps of the scheduler, whatever their number; with 1000 steps they are
the steps. A network that predicts eps gives x_0 = (x_t - sigma eps) / alpha. So alpha must not vanish at the last step:

- With zero-terminal SNR it does, and such a model has to predict v (Lin et al. 2024): refused.
- Of a squared-cosine schedule (Nichol and Dhariwal 2021) only the last steps are near zero: our times end before them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError

TIMES = 1000
FEWEST_STEPS = 51
"""Points of the DDIM grid: fewer steps than points would put several points on one step."""
LEAST_ALPHA = 5e-3
"""Below the last alpha of the linear schedule of Ho et al. (6.4e-3), under which an error of eps is 200 times as large
in x_0."""


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha, sigma: float64 [1000]. times: the step that the network is given at each of our times, 0 ... 999."""

    alpha: Float[Tensor, " times"]
    sigma: Float[Tensor, " times"]
    times: tuple[int, ...]
    prediction_type: str

    def digest_bytes(self) -> bytes:
        """Everything that changes a number; the times only where they are not the scheduler's own 1000 steps."""
        steps = b"" if self.times == tuple(range(TIMES)) else repr(self.times).encode()
        return self.prediction_type.encode() + self.alpha.numpy().tobytes() + steps


def variance_preserving(scheduler: Any, name: str) -> NoiseSchedule:
    """The schedule of a scheduler that has `alphas_cumprod`, whatever betas it was made from.

    Args:
        scheduler: of diffusers.
        name: its file, for messages.

    Raises:
        UserError: it has no alphas_cumprod or too few steps, predicts something else than eps or v, or predicts eps
            where alpha vanishes.
    """
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    described = f"{name} is a {type(scheduler).__name__} with prediction_type={prediction_type!r}"
    if alphas_cumprod is None or prediction_type not in ("epsilon", "v_prediction"):
        raise UserError(
            f"{described}; expected alphas_cumprod and prediction_type epsilon or v_prediction. Save the pipeline with "
            "a DDIM or DDPM scheduler."
        )
    alpha_bar = alphas_cumprod.double()
    if len(alpha_bar) < FEWEST_STEPS:
        raise UserError(
            f"{described} and {len(alpha_bar)} steps; expected at least {FEWEST_STEPS}, the points of the DDIM grid"
        )
    # With zero-terminal SNR, diffusers' Euler schedulers end at 2^-24, which may be above the step before.
    if not bool(
        (alpha_bar.isfinite() & (alpha_bar >= 0) & (alpha_bar <= 1)).all() and (alpha_bar.diff() <= 1e-6).all()
    ):
        raise UserError(
            f"{described}, and its alphas_cumprod are no noise process; expected them to fall from 1 to 0. Check the "
            "betas (trained_betas, beta_start, beta_end) in scheduler_config.json"
        )
    if prediction_type == "epsilon":
        alpha_bar = _with_usable_alpha(alpha_bar, described, bool(scheduler.config.get("rescale_betas_zero_snr")))
    times = torch.linspace(0, len(alpha_bar) - 1, TIMES, dtype=torch.float64).round().long()
    alpha, sigma = alpha_bar[times].sqrt(), (1 - alpha_bar[times]).sqrt()
    return NoiseSchedule(alpha, sigma, tuple(times.tolist()), prediction_type)


def _with_usable_alpha(alpha_bar: Tensor, described: str, zero_snr: bool) -> Tensor:
    """alphas_cumprod without the last steps, at which a division by alpha would amplify every error of eps."""
    if zero_snr or alpha_bar[-1] == 0:
        raise UserError(
            f"{described} and zero-terminal SNR: at the last step alpha is 0, so eps does not determine x_0. Such a "
            "model predicts v: set prediction_type to v_prediction in scheduler_config.json if it was trained so; if "
            "it was trained on eps, set rescale_betas_zero_snr to false"
        )
    usable = int((alpha_bar.sqrt() >= LEAST_ALPHA).sum())
    if alpha_bar[-1].sqrt() >= LEAST_ALPHA:
        return alpha_bar
    if usable < 0.9 * len(alpha_bar):
        raise UserError(
            f"{described}, and alpha is below {LEAST_ALPHA} at {len(alpha_bar) - usable} of {len(alpha_bar)} steps, so "
            "eps does not determine x_0 there; expected a schedule that reaches pure noise at its end. Check the betas"
        )
    return alpha_bar[:usable]


SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Settings that choose which levels a sampler visits. They are ignored, because the levels between are levels too."""


def _flow_of_solver(config: Mapping[str, Any]) -> NoiseSchedule:
    """The levels that a solver of another kind (DPM-Solver++ in SANA) steps over, shifted as Esser et al. (2024) do."""
    u, shift = torch.linspace(1 / TIMES, 1, TIMES, dtype=torch.float64), config.get("flow_shift") or 1.0
    sigma = shift * u / (1 + (shift - 1) * u)
    return NoiseSchedule(1 - sigma, sigma, tuple(range(TIMES)), "flow")


def shift_of(config: Mapping[str, Any], tokens: int) -> float:
    """mu at an image's tokens, on the line through the two sizes of images in the scheduler's configuration."""
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (tokens - least) * (high - low) / (most - least)


def rectified_flow(
    scheduler: Any, name: str, tokens: int, shift: Callable[[Mapping[str, Any], int], float] = shift_of
) -> NoiseSchedule:
    """x_t = (1 - sigma) x_0 + sigma eps at 1000 levels of the scheduler, from the smallest to pure noise.

    The levels of a dynamic shift depend on the size of the image (Esser et al. 2024, section 5.3.2):

        sigma = e^mu / (e^mu + 1 / u - 1),      u = 1 / 1000 ... 1,      mu = shift(configuration, tokens)

    Args:
        scheduler: of diffusers.
        name: its file, for messages.
        tokens: the tokens of an image in the network.
        shift: from the scheduler's configuration and the tokens to mu.

    Raises:
        UserError: it is no flow matching scheduler of 1000 levels.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction":
        return _flow_of_solver(config)
    fits = kind == "FlowMatchEulerDiscreteScheduler" and config["num_train_timesteps"] == TIMES
    if not fits or config.get("invert_sigmas"):
        raise UserError(
            f"{name} is a {kind}, but the model is a rectified flow; expected a FlowMatchEulerDiscreteScheduler of "
            "1000 steps with invert_sigmas false. Save the pipeline with that scheduler."
        )
    sigma = scheduler.sigmas
    if config.get("use_dynamic_shifting") or config.get("shift_terminal"):
        scheduler = type(scheduler).from_config(config, **dict.fromkeys(SPACINGS, False))
        levels = torch.linspace(1, 1 / TIMES, TIMES, dtype=torch.float64).tolist()
        scheduler.set_timesteps(sigmas=levels, mu=shift(config, tokens))
        sigma = scheduler.sigmas[:-1]  # the last is the end of the sampler, no noise
    sigma = sigma.double().flip(0)
    return NoiseSchedule(1 - sigma, sigma, tuple(range(TIMES)), "flow")
