"""Stable Diffusion XL: two text encoders, and a pooled text and the image's sizes as added conditions.

Podell et al. (2023), as in `StableDiffusionXLPipeline`: the layers before the last of both encoders are concatenated,
the second encoder's projected end of text is the pooled text, and the six sizes (original, crop, target) are those of
an uncropped image of the model's own resolution.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.pipeline import DenoisingNetwork
from concept_trak.models.pipeline_folder import pipeline_settings
from concept_trak.models.text_to_image import TextToImage

CLIPS = ("text_encoder", "text_encoder_2")


def added_condition(cond: Condition) -> dict[str, Tensor]:
    """The inputs of the UNet beside the text, by its own names."""
    return {"text_embeds": cond["pooled"], "time_ids": cond["sizes"]}


def predict_sdxl(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]."""
    inputs = {"encoder_hidden_states": cond["text"], "added_cond_kwargs": added_condition(cond)}
    return network(x_t, times, **inputs, return_dict=False)[0]


class StableDiffusionXL(TextToImage):
    """A condition has `text` [b, tokens, both widths], `pooled` [b, width of the second] and `sizes` [b, 6]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DConditionModel, predict_sdxl, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    float32_vae: ClassVar[bool] = True

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """Text encodings, padded to the model's own length, without an attention mask.

        "" is all zeros where the pipeline's `force_zeros_for_empty_prompt` is set: so the model was trained.
        """
        encodings = {name: self.text_encoders[name].before_last(texts) for name in CLIPS}
        text = torch.cat([states for states, _ in encodings.values()], -1)
        pooled = encodings["text_encoder_2"][1]
        if self._zeros():
            is_text = torch.tensor([caption != "" for caption in texts], device=self.device)
            text, pooled = text * is_text[:, None, None], pooled * is_text[:, None]
        side = self.resolution
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(texts), device=self.device, dtype=self.dtype)
        return {"text": text, "pooled": pooled, "sizes": sizes}

    def _zeros(self) -> bool:
        return bool(pipeline_settings(self.path).get("force_zeros_for_empty_prompt", True))

    def identity(self) -> dict[str, str]:
        return {**super().identity(), "empty": "zeros" if self._zeros() else "encoded"}


PIPELINES = {"StableDiffusionXLPipeline": StableDiffusionXL, "StableDiffusionXLImg2ImgPipeline": StableDiffusionXL}
