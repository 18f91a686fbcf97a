"""Checks before an audit computes anything: finite predictions that do not depend on the batch, data that fit the
model, and outputs of the scheduler's prediction type.

The project computes per sample: eps_theta(x_t^i, t, c^i) and its pull-back must not depend on other samples. If they do
(batch norm with batch statistics, attention or a queue across samples), numbers change with `model.batch`, with the
order of the rows, and with a retry at half the batch.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Denoiser, blank_condition, take_rows
from concept_trak.attribution.numerics import at_least_float32, normal
from concept_trak.config import DataConfig
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.models.encode import encode_samples, reject_unknown_class, require_conditioning_images

# Relative difference of a prediction in two batches that rounding explains: kernels are chosen by size and block
# differently. Measured on CPU, small pipelines in a batch of 8: 1e-15, 1e-6, 0 and 2e-3; a batch norm that takes its
# statistics from a batch of 2 to 4: 0.3 to 0.5.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@torch.no_grad()
def batch_consistency(denoiser: Denoiser, texts: Sequence[str], t: int = 200, seed: int = 0) -> float:
    """max_i |eps^i in a batch of all texts - eps^i alone| / |eps^i alone|, Euclidean, at x_t ~ N(0, I) of each.

    Args:
        texts: at least two conditions, better different ones; their number is the batch.
        t: the time, 0 ... 999. At strong noise, eps hardly depends on the output of a network that predicts v.
        seed: of the noise, keyed by (seed, number of the text).
    """
    assert len(texts) > 1, "one sample is no batch"
    drawn = torch.stack([normal(denoiser.shape, seed, i, "preflight") for i in range(len(texts))])
    x_t, cond = drawn.to(denoiser.device, denoiser.dtype), blank_condition(denoiser, texts)
    together = denoiser(x_t, t, cond).eps.double()
    alone = torch.cat(
        [denoiser(x_t[i : i + 1], t, take_rows(cond, slice(i, i + 1))).eps for i in range(len(texts))]
    ).double()
    return ((together - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)).max().item()


def require_batch_consistency(denoiser: Denoiser, texts: Sequence[str]) -> float:
    """The difference that `batch_consistency` measures.

    Raises:
        UserError: predictions are not finite, or rounding does not explain the difference.
    """
    difference, allowed = batch_consistency(denoiser, texts), ROUNDING[denoiser.dtype]
    if not math.isfinite(difference):
        half = denoiser.dtype in (torch.float16, torch.bfloat16)
        remedy = "set model.precision=float32" if half else "check the model's weights"
        raise UserError(
            f"the model's prediction for pure noise is not finite in {denoiser.dtype} (NaN or infinite); {remedy}"
        )
    if difference > allowed:
        raise UserError(
            f"the model's prediction for a sample differs between a batch of {len(texts)} and the sample alone by "
            f"{difference:.1e} of its size; rounding in {denoiser.dtype} explains at most {allowed:.0e}. Its samples "
            "depend on each other, as with batch norm outside evaluation mode. Put such layers in evaluation mode, or "
            "set model.batch=1."
        )
    return difference


@torch.no_grad()
def require_fit(denoiser: Denoiser, shard: Shard, data: DataConfig) -> None:
    """Refuse data that do not fit the model: a bucket's size, precomputed latents and embeddings, conditioning images,
    or squares if the model's own samples are not square.

    Raises:
        UserError: naming the size.
    """
    height, width = denoiser.shape[-2:]
    if height != width and not data.buckets:
        factor = denoiser.resolution // width
        raise UserError(
            f"the model's samples have {height} x {width} latents, and the data would be cropped to squares; set "
            f"data.buckets=[[{height * factor}, {width * factor}]], the size it was trained at"
        )
    first = next((s for s in samples(shard, data, denoiser.resolution) if isinstance(s, Sample)), None)
    if first is not None and first.precomputed is not None:
        encode_samples(denoiser, [first])
    elif first is not None:
        require_conditioning_images(denoiser, [first])
    for height, width in data.buckets:
        pixels = torch.zeros(1, 3, height, width, device=denoiser.device, dtype=denoiser.dtype)
        try:
            x_0 = denoiser.to_latent(pixels)
            seen = denoiser(x_0, 500, blank_condition(denoiser, [""], (height, width))).eps.shape
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"data.buckets: the model cannot take images of {height} x {width} ({str(error)[:200]}); expected "
                "sizes that its network halves evenly, such as multiples of 64"
            ) from error
        if seen != x_0.shape:
            raise UserError(
                f"data.buckets: of {height} x {width} the model makes {list(seen[2:])}, not {list(x_0.shape[2:])}"
            )


READ_AT = (200, 500, 800)
"""Times at which the prediction type is checked: mostly image, half and half, mostly noise."""
log = logging.getLogger(__name__)


@torch.no_grad()
def prediction_errors(denoiser: Denoiser, x_0: Tensor, cond: Condition, seed: int = 0) -> dict[str, float]:
    """How far the network's raw output is from the target of each prediction type.

        epsilon: eps,    v_prediction: alpha eps - sigma x_0,    sample: x_0

    Args:
        denoiser: of eps or v (its attribute `prediction_type`).
        x_0: samples [b, c, h, w], two are enough.
        cond: their conditions.
        seed: of the noise.

    Returns:
        The mean over samples and `READ_AT` of |output - target|^2 / |target|^2. It is near 0 for the type that the
        network was trained with, and about 1 or more for another type and for an untrained network. The error of x_0
        as each type reconstructs it is the same but for a factor, sigma^2 / alpha^2, sigma^2 or 1.
    """
    errors: dict[str, list[Tensor]] = {"epsilon": [], "v_prediction": [], "sample": []}
    x_0 = at_least_float32(x_0)
    for t in READ_AT:
        alpha, sigma = denoiser.alpha[t].item(), denoiser.sigma[t].item()
        eps = torch.stack([normal(tuple(x_0.shape[1:]), seed, i, "prediction type", t) for i in range(len(x_0))]).to(
            x_0
        )
        seen = denoiser(alpha * x_0 + sigma * eps, t, cond)
        is_eps = getattr(denoiser, "prediction_type", "") == "epsilon"
        output = seen.eps if is_eps else alpha * seen.eps - sigma * seen.x_0
        targets = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x_0, "sample": x_0}
        for name, target in targets.items():
            distance = (output - target).flatten(1).square().sum(1) / target.flatten(1).square().sum(1).clamp(min=1e-12)
            errors[name].append(distance.double())
    return {name: torch.cat(values).mean().item() for name, values in errors.items()}


def warn_of_prediction_type(denoiser: Denoiser, shard: Shard, data: DataConfig) -> str:
    """Warn if another prediction type fits the model far better than the one of its scheduler.

    Args:
        denoiser: the model.
        shard: with the first rows of the data, of which at most two are used.
        data: how they are read.

    Returns:
        The warning, which is also logged; empty if there is none.
    """
    configured = getattr(denoiser, "prediction_type", "")
    if configured not in ("epsilon", "v_prediction"):
        return ""
    checked = (reject_unknown_class(denoiser, s) for s in samples(shard, data, denoiser.resolution))
    readable = [s for s in checked if isinstance(s, Sample)]
    if not readable:
        return ""
    x_0, cond = encode_samples(denoiser, readable[:1] if _shapes(readable) > 1 else readable[:2])
    errors = prediction_errors(denoiser, x_0, cond)
    best = min(errors, key=lambda name: errors[name])
    if best == configured or errors[best] > 0.5 or errors[configured] < 2 * errors[best]:
        return ""
    also = "" if best == "v_prediction" or best == "epsilon" else ", a type that is not supported"
    text = (
        f"the scheduler's prediction_type is {configured}, but on {len(x_0)} samples of the data the model's outputs "
        f"fit {best} far better{also}: mean relative error {errors[best]:.2g} against {errors[configured]:.2g}. If so, "
        "no feature has a meaning: set prediction_type in scheduler/scheduler_config.json to what the model was "
        "trained with"
    )
    log.warning(text)
    return text


def _shapes(read: Sequence[Sample]) -> int:
    return len({None if s.pixels is None else s.pixels.shape for s in read})
