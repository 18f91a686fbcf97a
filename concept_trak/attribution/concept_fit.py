"""Whether a model tells a concept in its own pictures: a check that needs no label.

A method that compares captions also ranks by them for a model that was never trained, and consistently so: halves of a
query agree, and words stand out. Only the model's predictions show that it knows the concept. For pictures x_0 of the
condition c, and c- the same without the concept,

    a = argmin_a sum |eps - eps_c- - a d|^2,  d = eps_c - eps_c-,

summed over pictures and states. If the model draws what it was trained on, E[eps | x_t, c] = eps_c and a is 1. The
standard error of a is s |d|^-1 with s^2 = mean (eps - eps_c)^2, as for `caption_fit`; with initial weights d is small
and the error is large.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, required

SHARES = (0.3, 0.5, 0.7)
"""The times of the states, as shares of all: at them the content of a picture is decided."""
DOUBT = 0.25
"""The standard error above which the model does not tell the concept, as for the training side of `fit_trak`."""


class ConceptFit(NamedTuple):
    """The coefficient a with its standard error, at least that between the pictures where there are several."""

    coefficient: float
    error: float

    @property
    def told(self) -> bool:
        """Whether the model tells its pictures of the concept from those without it."""
        return self.error <= DOUBT and self.coefficient > 2 * self.error


@torch.no_grad()
def concept_fit(denoiser: Denoiser, batch: Batch, x_0: Float[Tensor, "b c *space"], seed: int) -> ConceptFit:
    """The fit of some pictures.

    Args:
        batch: the samples of a query, with `without`.
        x_0: their pictures.
        seed: of the noise.
    """
    without = required(batch.without, "without", "concept_fit")
    along, square, variance = (torch.zeros(len(x_0), dtype=torch.float64) for _ in range(3))
    for share in SHARES:
        t = int(share * len(denoiser.alpha))
        noise = normal(tuple(x_0.shape), seed, "concept fit", t).to(x_0.device, x_0.dtype)
        x_t = (denoiser.alpha[t].item() * x_0 + denoiser.sigma[t].item() * noise).to(denoiser.dtype)
        own, other = (denoiser(x_t, t, condition).eps.double() for condition in (batch.cond, without))
        d, rest = (own - other).flatten(1), (noise - other).flatten(1)
        length = d.square().sum(1).cpu()
        along += (rest * d).sum(1).cpu()
        square += length
        variance += (noise - own).square().flatten(1).mean(1).cpu() * length
    if square.sum() == 0:
        return ConceptFit(0.0, float("inf"))
    error = (variance.sum().sqrt() / square.sum()).item()
    if len(x_0) > 1 and (square > 0).all():
        error = max(error, ((along / square).std() / len(x_0) ** 0.5).item())
    return ConceptFit((along.sum() / square.sum()).item(), error)
