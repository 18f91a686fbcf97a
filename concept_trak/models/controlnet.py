"""ControlNet: a copy of a UNet's first half that reads an image too (Zhang et al. 2023), on Stable Diffusion and SDXL.

    eps_theta(x_t, t, text, image) = UNet(x_t, t, text; r_theta),    r_theta = ControlNet(x_t, t, text, image)

r_theta are added to the outputs of the UNet's first half and of its middle, at full strength, as in training. The UNet
was frozen in training, so only the ControlNet's parameters are attributable, whatever `model.parameters` selects.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.loading import load_part
from concept_trak.models.pipeline import DenoisingNetwork, Pipeline
from concept_trak.models.pipeline_folder import class_of_part
from concept_trak.models.sdxl import StableDiffusionXL, added_condition
from concept_trak.models.text_to_image import TextToImage

PART = "controlnet"


class ControlledUNet(nn.Module):
    """A UNet and its ControlNet as one denoising network."""

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet, self.controlnet, self.config = unet, controlnet, unet.config

    def forward(self, x_t: Tensor, times: Tensor, control: Tensor, **inputs: Any) -> tuple[Tensor]:
        """The raw output [b, c, h, w]; `inputs` are those of both networks."""
        residuals, middle = self.controlnet(x_t, times, controlnet_cond=control, return_dict=False, **inputs)
        sums = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": middle}
        return self.unet(x_t, times, return_dict=False, **sums, **inputs)


def join_controlnet(
    denoiser: Pipeline,
    classes: Mapping[str, str],
    dtype: torch.dtype,
    device: str,
    joined: Callable[[Any, Any], nn.Module] = ControlledUNet,
) -> frozenset[nn.Parameter]:
    """Join the ControlNet of a pipeline directory to its denoising network. Returns the parameters of the latter.

    Args:
        denoiser: its network is replaced.
        classes: the class of every part.
        dtype, device: the precision and the place of the ControlNet's weights.
        joined: makes one network of the denoising network and the ControlNet.

    Raises:
        UserError: the ControlNet cannot be read, or there are several.
    """
    base = frozenset(denoiser.network.parameters())
    controlnet = load_part(class_of_part(diffusers, classes, PART), denoiser.path, PART, dtype, device)
    denoiser.network = joined(denoiser.network, controlnet)
    return base


def predict_controlled(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]."""
    return network(x_t, times, cond["control"], encoder_hidden_states=cond["text"])[0]


def predict_controlled_sdxl(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]."""
    inputs = {"encoder_hidden_states": cond["text"], "added_cond_kwargs": added_condition(cond)}
    return network(x_t, times, cond["control"], **inputs)[0]


class ControlNet(TextToImage):
    """A condition has `text` [b, tokens, width] and `control` [b, 3, height, width], the image in [0, 1]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DConditionModel, predict_controlled, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = (*TextToImage.conditioners, PART)
    takes_image: ClassVar[bool] = True

    def _add_networks(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> frozenset[nn.Parameter]:
        return join_controlnet(self, classes, dtype, device)

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Condition:
        like = next(self.network.parameters())
        return {"control": (pixels.to(like.device, like.dtype) + 1) / 2}  # as the pipelines of diffusers give it

    def _conditioning_parts(self) -> tuple[str, ...]:
        return (*super()._conditioning_parts(), PART)


class ControlNetXL(ControlNet, StableDiffusionXL):
    """A condition is that of SDXL and has `control` [b, 3, height, width], the image in [0, 1]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DConditionModel, predict_controlled_sdxl, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = (*StableDiffusionXL.conditioners, PART)


PIPELINES = {"StableDiffusionControlNetPipeline": ControlNet, "StableDiffusionXLControlNetPipeline": ControlNetXL}
