"""Lumina-Image 2.0: a transformer on the tokens of Gemma 2 and of the image together (Qin et al. 2025).

As in `Lumina2Pipeline`: the network is given 1 - sigma and predicts x_0 - eps. A text comes after the pipeline's own
instruction to Gemma, within 256 tokens; the empty text has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.flow_text_to_image import FlowTextToImage
from concept_trak.models.pipeline import DenoisingNetwork

TOKENS = 256
INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)
"""What stands before every text but the empty one, as in `Lumina2Pipeline`."""


def predict_lumina2(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """v [b, c, h, w], of the network's own output with its sign turned."""
    inputs = {"encoder_hidden_states": cond["text"], "encoder_attention_mask": cond["mask"]}
    return -network(x_t, 1 - times, **inputs, return_dict=False)[0]


class Lumina2(FlowTextToImage):
    """A condition has `text` [b, 256, width] and `mask` [b, 256]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(
            Lumina2Transformer2DModel, predict_lumina2, lambda network: network.layers[len(network.layers) // 2]
        )
    }
    time_of_noise: ClassVar[float] = 1.0
    limits: ClassVar[Mapping[str, int]] = {"text_encoder": TOKENS}
    padding_side: ClassVar[str] = "right"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        (text,), mask = self.text_encoders["text_encoder"].layers([text and INSTRUCTION + text for text in texts], [-2])
        return {"text": text, "mask": mask}


PIPELINES = {"Lumina2Pipeline": Lumina2, "Lumina2Text2ImgPipeline": Lumina2}
