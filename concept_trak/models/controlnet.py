"""ControlNet on Stable Diffusion: a copy of the UNet's first half that reads an image too (Zhang et al. 2023).

    eps_theta(x_t, t, text, image) = UNet(x_t, t, text; r_theta),    r_theta = ControlNet(x_t, t, text, image)

r_theta are added to the outputs of the UNet's first half and of its middle, at full strength, as in training. The UNet
was frozen in training, so only the ControlNet's parameters are attributable, whatever `model.parameters` selects.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.loading import load_part
from concept_trak.models.pipeline import DenoisingNetwork
from concept_trak.models.pipeline_folder import class_of_part
from concept_trak.models.text_to_image import TextToImage


class ControlledUNet(nn.Module):
    """A UNet and its ControlNet as one denoising network. Only the ControlNet is read for its gradients."""

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet, self.controlnet, self.config = unet, controlnet, unet.config

    def forward(self, x_t: Tensor, times: Tensor, text: Tensor, control: Tensor) -> tuple[Tensor]:
        inputs: dict[str, Any] = {"encoder_hidden_states": text, "return_dict": False}
        residuals, middle = self.controlnet(x_t, times, controlnet_cond=control, **inputs)
        added = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": middle}
        return self.unet(x_t, times, **added, **inputs)


def predict_controlled(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]."""
    return network(x_t, times, cond["text"], cond["control"])[0]


class ControlNet(TextToImage):
    """A condition has `text` [b, tokens, width] and `control` [b, 3, height, width], the image in [0, 1]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DConditionModel, predict_controlled, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "controlnet")
    takes_image: ClassVar[bool] = True

    def _add_networks(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> frozenset[nn.Parameter]:
        controlnet = load_part(class_of_part(diffusers, classes, "controlnet"), self.path, "controlnet", dtype, device)
        base = frozenset(self.network.parameters())
        self.network = ControlledUNet(self.network, controlnet)
        return base

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Condition:
        """The image in [0, 1], as `StableDiffusionControlNetPipeline` gives it to the ControlNet."""
        return {"control": (pixels.to(self.device, self.dtype) + 1) / 2}

    def _conditioning_parts(self) -> tuple[str, ...]:
        return (*super()._conditioning_parts(), "controlnet")


PIPELINES = {"StableDiffusionControlNetPipeline": ControlNet}
