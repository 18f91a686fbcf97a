"""Checks before an audit computes anything: predictions do not depend on the batch, and the data fit the model.

Everything here is per sample: eps_theta(x_t^i, t, c^i) and its pull-back must be those of sample i alone. In a network
whose samples depend on each other (batch norm with batch statistics, attention or a queue across samples) numbers
change with `model.batch`, with the order of the rows, and with a retry at half the batch.
"""

from collections.abc import Sequence

import torch

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser, take_rows
from concept_trak.attribution.numerics import normal
from concept_trak.audit.featurize import encode_samples
from concept_trak.config import DataConfig
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard

# Relative difference of a prediction in two batches that rounding explains: kernels are chosen by size and block
# differently. Measured on CPU, small pipelines in a batch of 8: 1e-15, 1e-6, 0 and 2e-3; a batch norm that takes its
# statistics from a batch of 2 to 4: 0.3 to 0.5.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@torch.no_grad()
def batch_consistency(denoiser: Denoiser, texts: Sequence[str], t: int = 200, seed: int = 0) -> float:
    """max_i |eps^i in a batch of all texts - eps^i alone| / |eps^i alone|, Euclidean, at x_t ~ N(0, I) of each.

    Args:
        texts: at least two conditions, better different ones; their number is the batch.
        t: the time, 0 ... 999; where noise is strong a network that predicts v hardly shows in eps.
        seed: of the noise, keyed by (seed, number of the text).
    """
    assert len(texts) > 1, "one sample is no batch"
    drawn = torch.stack([normal(denoiser.shape, seed, i, "preflight") for i in range(len(texts))])
    x_t, cond = drawn.to(denoiser.device, denoiser.dtype), denoiser.encode(texts)
    together = denoiser(x_t, t, cond).eps.double()
    alone = torch.cat(
        [denoiser(x_t[i : i + 1], t, take_rows(cond, slice(i, i + 1))).eps for i in range(len(texts))]
    ).double()
    return ((together - alone).flatten(1).norm(dim=1) / alone.flatten(1).norm(dim=1)).max().item()


def require_batch_consistency(denoiser: Denoiser, texts: Sequence[str]) -> float:
    """The difference that `batch_consistency` finds.

    Raises:
        UserError: rounding does not explain it.
    """
    difference, allowed = batch_consistency(denoiser, texts), ROUNDING[denoiser.dtype]
    if not difference <= allowed:  # a nan is refused as well
        raise UserError(
            f"the model's prediction for a sample differs between a batch of {len(texts)} and the sample alone by "
            f"{difference:.1e} of its size; rounding in {denoiser.dtype} explains at most {allowed:.0e}. Its samples "
            "depend on each other, as with batch norm outside evaluation mode. Put such layers in evaluation mode, or "
            "set model.batch=1."
        )
    return difference


@torch.no_grad()
def require_fit(denoiser: Denoiser, shard: Shard, data: DataConfig) -> None:
    """That the model takes what the data give it: every bucket's size, and the latents and embeddings they bring along.

    Raises:
        UserError: it does not; the message names the size.
    """
    first = next((s for s in samples(shard, data, denoiser.resolution) if isinstance(s, Sample)), None)
    if first is not None and first.precomputed is not None:
        encode_samples(denoiser, [first])
    for height, width in data.buckets:
        pixels = torch.zeros(1, 3, height, width, device=denoiser.device, dtype=denoiser.dtype)
        try:
            x_0 = denoiser.to_latent(pixels)
            seen = denoiser(x_0, 500, denoiser.encode([""])).eps.shape
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"data.buckets: the model cannot take images of {height} x {width} ({str(error)[:200]}); expected "
                "sizes that its network halves evenly, such as multiples of 64"
            ) from error
        if seen != x_0.shape:
            raise UserError(
                f"data.buckets: of {height} x {width} the model makes {list(seen[2:])}, not {list(x_0.shape[2:])}"
            )
