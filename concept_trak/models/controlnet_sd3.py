"""A ControlNet on Stable Diffusion 3 and 3.5: a transformer on latents and on the latents of an image.

    v_theta(x_t, t, text, image) = MMDiT(x_t, t, text; r_theta),    r_theta = ControlNet(x_t, t, text, E(image))

r_theta are added to the outputs of the transformer's blocks, at full strength, as in training, and E is the VAE. The
transformer was frozen in training, so only the ControlNet's parameters are attributable.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition
from concept_trak.models.controlnet import PART, join_controlnet
from concept_trak.models.pipeline import DenoisingNetwork, middle_feed_forward
from concept_trak.models.pipeline_folder import read_json
from concept_trak.models.sd3 import StableDiffusion3


class ControlledTransformer(nn.Module):
    """A transformer and its ControlNet as one denoising network."""

    def __init__(self, transformer: Any, controlnet: Any) -> None:
        super().__init__()
        self.transformer, self.controlnet, self.config = transformer, controlnet, transformer.config


class ControlledSD3(ControlledTransformer):
    """Two kinds of ControlNet: with the text and positions of its own, or (of 3.5) with neither."""

    def __init__(self, transformer: Any, controlnet: Any) -> None:
        super().__init__(transformer, controlnet)
        if controlnet.pos_embed is None:
            # As the pipeline of diffusers does it. A copy, because the two networks may be on two devices.
            controlnet.pos_embed = deepcopy(transformer.pos_embed)

    def forward(self, x_t: Tensor, control: Tensor, **inputs: Any) -> tuple[Tensor]:
        """The raw output [b, c, h, w]; `inputs` are those of the transformer."""
        settings, own = self.controlnet.config, dict(inputs)
        if settings["joint_attention_dim"] is None:
            own["encoder_hidden_states"] = None
        if settings["force_zeros_for_pooled_projection"]:
            own["pooled_projections"] = torch.zeros_like(inputs["pooled_projections"])
        residuals = self.controlnet(x_t, control, return_dict=False, **own)[0]
        return self.transformer(x_t, block_controlnet_hidden_states=residuals, return_dict=False, **inputs)


def predict_controlled_sd3(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    inputs = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"], "timestep": times}
    return network(x_t, cond["control"], **inputs)[0]


class ControlNetSD3(StableDiffusion3):
    """A condition is that of Stable Diffusion 3 and has `control` [b, c, h, w], the image's latents."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(SD3Transformer2DModel, predict_controlled_sd3, middle_feed_forward)
    }
    conditioners: ClassVar[tuple[str, ...]] = (*StableDiffusion3.conditioners, PART)
    takes_image: ClassVar[bool] = True

    def _add_networks(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> frozenset[nn.Parameter]:
        if extra := read_json(self.path / PART / "config.json").get("extra_conditioning_channels"):
            raise UserError(
                f"{self.path / PART} takes {extra} channels beside the image, such as a mask, which no sample has; "
                "expected a ControlNet with extra_conditioning_channels 0"
            )
        base, network = join_controlnet(self, classes, dtype, device, ControlledSD3), self.network
        positions = () if self._settings["use_pos_embed"] else network.get_submodule(f"{PART}.pos_embed").parameters()
        return base.union(positions)

    @property
    def _settings(self) -> Any:
        network: Any = self.network
        return network.controlnet.config

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Condition:
        latents = self.to_latent(pixels)
        if self._settings["force_zeros_for_pooled_projection"] and self.vae is not None:
            # The pipeline of diffusers takes this setting as the mark of ControlNets that were trained without a shift.
            latents = latents + self.vae.shift * self.vae.scale
        return {"control": latents}

    def _conditioning_parts(self) -> tuple[str, ...]:
        return (*super()._conditioning_parts(), PART)


PIPELINES = {"StableDiffusion3ControlNetPipeline": ControlNetSD3}
