"""What text-to-image transformers have in common that were trained as a rectified flow.

Esser et al. (2024): x_t = (1 - sigma) x_0 + sigma eps, and the network predicts v = eps - x_0. Hence

    x_0 = x_t - sigma v,        eps = x_t + (1 - sigma) v,        alpha = 1 - sigma

t = 0 ... 999 are 1000 noise levels of the scheduler, from the smallest to pure noise (alpha = 0). Levels that depend on
the size of the image are those of the model's resolution. In eps units a loss on v is weighted by (1 - sigma)^2, so
pure noise teaches nothing.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import GROUPS, Condition, Prediction
from concept_trak.models.noise_schedule import NoiseSchedule, rectified_flow, shift_of
from concept_trak.models.text_to_image import TextToImage


class FlowTextToImage(TextToImage):
    """A text-to-image pipeline whose network predicts v. A subclass adds its network and its conditions.

    Class attributes:
        time_of_noise: the time that the network is given for pure noise, sigma = 1.
        default_side: side of the latents of an image of the model's own resolution, where the network's configuration
            has no `sample_size`.
        shift: from the scheduler's configuration and an image's tokens to the mu of a dynamic shift.
    """

    time_of_noise: ClassVar[float] = 1000.0
    shift: Callable[[Mapping[str, Any], int], float] = staticmethod(shift_of)
    default_side: ClassVar[int | None] = None
    # Text and image share each attention. attn2, where a block has one, is the image's own.
    groups: ClassVar[Mapping[str, str]] = {name: GROUPS[name] for name in ("all", "attention", "lora")}

    def _sides(self) -> tuple[int, int]:
        return super()._sides() if self.default_side is None else (self.default_side, self.default_side)

    def _read_schedule(self, scheduler: Any) -> NoiseSchedule:
        return rectified_flow(scheduler, f"{self.path}/scheduler", self.image_tokens, self.shift)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image of the model's resolution, or of a clip, in the network."""
        return math.prod(self.shape[1:]) // self.patch**2

    def __call__(self, x_t: Float[Tensor, "b c *space"], t: int, cond: Condition) -> Prediction:
        alpha, sigma = self.alpha[t].item(), self.sigma[t].item()
        times = torch.full((len(x_t),), self.time_of_noise * sigma, device=x_t.device)
        v = self.denoising.predict(self.network, x_t.to(self.dtype), times, cond).to(x_t.dtype)
        return Prediction(x_t - sigma * v, x_t + alpha * v)


def pack(x_t: Float[Tensor, "b c h w"]) -> Float[Tensor, "b tokens width"]:
    """Squares of 2 x 2 latents as tokens of 4 c numbers, in rows from the top left."""
    return F.pixel_unshuffle(x_t, 2).flatten(2).mT


def unpack(tokens: Float[Tensor, "b tokens width"], h: int, w: int) -> Float[Tensor, "b c h w"]:
    """The inverse of `pack` for latents of h x w."""
    return F.pixel_shuffle(tokens.mT.unflatten(2, (h // 2, w // 2)), 2)


def positions(h: int, w: int, axes: int, device: torch.device) -> Float[Tensor, "tokens axes"]:
    """The row and column of each token of an image in axes 1 and 2, and 0 in the others."""
    ids = torch.zeros(h, w, axes, device=device)
    ids[..., 1] += torch.arange(h, device=device)[:, None]
    ids[..., 2] += torch.arange(w, device=device)
    return ids.flatten(0, 1)
