"""The space of latents: a VAE of diffusers as two functions, from images to x_0 and back.

    x_0 = (mode - shift) * scale,        image = decode(x_0 / scale + shift)

scale and shift are one number each; with `latents_std` and `latents_mean`, one for each channel: scale / std and mean.
A VAE for video encodes an image as its first frame. Flux 2's joins squares of 2 x 2 latents to the channels of one, and
its scale and shift are the statistics of a batch norm.

The mode is that of the posterior; a VAE without a posterior (`AutoencoderTiny`, `AutoencoderDC`, `VQModel`) has one
latent. In float16 some VAEs overflow: rows that are not finite are computed again in float32.
"""

import copy
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError

log = logging.getLogger(__name__)
SIDE = 64
"""Pixels of the image that measures how much a VAE shrinks."""


class Autoencoder:
    """A frozen VAE. A subclass for clips replaces `latents_of` and `images_of`.

    Args:
        module: the VAE, in the precision that it runs in.
        dtype: the precision of the model, and so of x_0.

    Attributes:
        on_device: the context in which the VAE's weights are where they are used.

    Raises:
        UserError: its scale or its shift is no number, or not one for each channel.
    """

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.module, self.dtype = module.requires_grad_(False), dtype
        self.on_device: Callable[[], AbstractContextManager[None]] = nullcontext
        self.scale: float | Tensor = _factor(module, "scaling_factor", 1.0)
        self.shift: float | Tensor = _factor(module, "shift_factor", 0.0)
        if module.config.get("latents_std") is not None and module.config.get("latents_mean") is not None:
            self.scale = self.scale / _per_channel(module, "latents_std")
            self.shift = _per_channel(module, "latents_mean")
        self.patch = 1
        if norm := getattr(module, "bn", None):
            self.patch = 2
            self.scale = (norm.running_var + module.config["batch_norm_eps"]).rsqrt()[:, None, None]
            self.shift = norm.running_mean[:, None, None]
        self._retried = False

    @property
    def channels(self) -> int | None:
        """The channels of x_0, where the configuration has their number."""
        config = self.module.config
        channels = config.get("latent_channels", config.get("z_dim"))
        return None if channels is None else channels * self.patch**2

    @property
    def runs_wider(self) -> bool:
        """Whether the VAE computes in a higher precision than the model."""
        return next(self.module.parameters()).dtype != self.dtype

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 *frames height width"]) -> Float[Tensor, "b *f c h w"]:
        """Images in [-1, 1] as x_0, in the model's precision."""
        latents = F.pixel_unshuffle(self._repaired(self.latents_of, pixels), self.patch)
        scale, shift = self._statistics(latents)
        return ((latents - shift) * scale).to(self.dtype)

    @torch.no_grad()
    def decode(self, x_0: Float[Tensor, "b *f c h w"]) -> Float[Tensor, "b 3 height width"]:
        """x_0 as images, about [-1, 1], in the model's precision."""
        scale, shift = self._statistics(x_0)
        latents = F.pixel_shuffle(x_0 / scale + shift, self.patch)
        return self._repaired(self.images_of, latents).to(self.dtype)

    def _statistics(self, latents: Tensor) -> list[float | Tensor]:
        """scale and shift, on the device of the latents."""
        return [v.to(latents.device) if isinstance(v, Tensor) else v for v in (self.scale, self.shift)]

    @cached_property
    def factor(self) -> int:
        """Pixels to a side of one number of x_0."""
        if "down_block_types" in self.module.config:
            return self.patch * 2 ** (len(self.module.config["block_out_channels"]) - 1)
        weight = next(self.module.parameters())
        image = torch.zeros(1, 3, SIDE, SIDE, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            return SIDE // self.latents_of(self.module, image).shape[-1]

    @staticmethod
    def latents_of(module: Any, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """The mode of the posterior, or the one latent of a VAE that has no posterior."""
        if _is_for_video(module):
            return module.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        encoded = module.encode(pixels)
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.mode()
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent

    @staticmethod
    def images_of(module: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """The decoded images."""
        if _is_for_video(module):
            return module.decode(latents[:, :, None]).sample[:, :, 0]
        return module.decode(latents).sample

    def _repaired(self, function: Any, value: Tensor) -> Tensor:
        """`function` of the VAE and each row of a batch [b, ...]; in float32 for rows that float16 makes infinite."""
        with self.on_device():
            return self._computed(function, value)

    def _computed(self, function: Any, value: Tensor) -> Tensor:
        weight = next(self.module.parameters())
        result = function(self.module, value.to(weight.device, weight.dtype))
        overflown = ~result.isfinite().flatten(1).all(1)
        if weight.dtype not in (torch.float16, torch.bfloat16) or not bool(overflown.any()):
            return result
        if not self._retried:
            log.warning("the VAE overflows in %s: such images are computed in float32", weight.dtype)
            self._retried = True
        rows = value.to(weight.device)[overflown].float()
        result = result.float()
        result[overflown] = function(copy.deepcopy(self.module).float(), rows)
        return result


def _factor(module: Any, name: str, default: float) -> float:
    """A number of the VAE's configuration.

    Raises:
        UserError: it is no finite number, or a scale of 0, which makes all images alike.
    """
    value = module.config.get(name)
    value = default if value is None else value
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or (default and not value)
    ):
        raise UserError(f"vae/config.json has {name} {value!r}; expected a finite number, such as 0.18215 or 1")
    return value


def _per_channel(module: Any, name: str) -> Tensor:
    """The numbers of the VAE's configuration, one for each channel, as [1, channels, 1, 1].

    Raises:
        UserError: one is no finite number or a deviation of 0, or their number is not that of the channels.
    """
    try:
        values = torch.tensor(module.config[name], dtype=next(module.parameters()).dtype)
    except (TypeError, ValueError):
        values = torch.empty(0)
    channels, positive = module.config.get("latent_channels", module.config.get("z_dim")), name == "latents_std"
    if values.shape != (channels,) or not bool(values.isfinite().all()) or (positive and bool((values <= 0).any())):
        raise UserError(f"vae/config.json has {name} {module.config[name]!r}; expected {channels} finite numbers")
    return values.to(next(module.parameters()).device)[None, :, None, None]


def _is_for_video(module: Any) -> bool:
    """Whether the VAE's tensors are [b, c, frames, h, w]; diffusers' setting has this spelling."""
    return "temperal_downsample" in module.config
