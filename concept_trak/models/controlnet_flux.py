"""A ControlNet on Flux 1: transformer blocks on packed latents and on the packed latents of an image.

The transformer was frozen in training, so only the ControlNet's parameters are attributable. Both networks have the
same times, positions and text; each has the strength of guidance if it was distilled: 3.5, as in diffusers' training
script.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition
from concept_trak.models.controlnet import PART, join_controlnet
from concept_trak.models.controlnet_sd3 import ControlledTransformer
from concept_trak.models.flow_text_to_image import pack, unpack
from concept_trak.models.flux import Flux, flux_inputs, guidance_condition
from concept_trak.models.pipeline import DenoisingNetwork, middle_feed_forward
from concept_trak.models.pipeline_folder import read_json

UNREAD = {
    "num_mode": "a union of several ControlNets (num_mode), which needs the number of one",
    "conditioning_embedding_channels": "a ControlNet that reads pixels (conditioning_embedding_channels)",
}
"""Settings of the kinds that are not read, in words."""


class ControlledFlux(ControlledTransformer):
    """A Flux and its ControlNet as one denoising network."""

    def forward(self, x_t: Tensor, control: Tensor, guidance: Tensor | None, **inputs: Any) -> tuple[Tensor]:
        """The raw output, packed; `x_t` and `control` are packed, `inputs` are those of both networks."""
        strengths = [guidance if network.config["guidance_embeds"] else None
                     for network in (self.controlnet, self.transformer)]  # fmt: skip
        double, single = self.controlnet(x_t, control, guidance=strengths[0], return_dict=False, **inputs)
        sums = {"controlnet_block_samples": double, "controlnet_single_block_samples": single}
        return self.transformer(x_t, guidance=strengths[1], return_dict=False, **sums, **inputs)


def predict_controlled_flux(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    return unpack(network(pack(x_t), pack(cond["control"]), **flux_inputs(x_t, times, cond))[0], *x_t.shape[2:])


class ControlNetFlux(Flux):
    """A condition is that of Flux and has `control` [b, c, h, w], the image's latents."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(FluxTransformer2DModel, predict_controlled_flux, middle_feed_forward)
    }
    conditioners: ClassVar[tuple[str, ...]] = (*Flux.conditioners, PART)
    takes_image: ClassVar[bool] = True

    def _add_networks(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> frozenset[nn.Parameter]:
        settings = read_json(self.path / PART / "config.json")
        for setting, kind in UNREAD.items():
            if settings.get(setting) is not None:
                raise UserError(f"{self.path / PART} is {kind}; it is not read. Expected one with {setting} null")
        return join_controlnet(self, classes, dtype, device, ControlledFlux)

    @property
    def _settings(self) -> Any:
        network: Any = self.network
        return network.controlnet.config

    def encode(self, texts: Sequence[str]) -> Condition:
        cond = super().encode(texts)
        return cond | (guidance_condition(self, len(texts)) if self._settings["guidance_embeds"] else {})

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Condition:
        return {"control": self.to_latent(pixels)}

    def _conditioning_parts(self) -> tuple[str, ...]:
        return (*super()._conditioning_parts(), PART)


PIPELINES = {"FluxControlNetPipeline": ControlNetFlux}
