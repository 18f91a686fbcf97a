"""SANA: a transformer with linear attention over the latents of a deep autoencoder (Xie et al. 2024).

As in `SanaPipeline`: texts in small letters, of 300 tokens of Gemma 2, whose padding is masked in every layer. A text
comes after the pipeline's own instruction to Gemma, whose tokens are left out afterwards; the empty text has none.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from jaxtyping import Float, Int
from torch import Tensor

from concept_trak.attribution.denoiser import GROUPS, Condition
from concept_trak.models.flow_text_to_image import FlowTextToImage
from concept_trak.models.pipeline import DenoisingNetwork, middle_block

TOKENS = 300
INSTRUCTION = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
"""What stands before every text but the empty one, as `SanaPipeline` has it."""


def predict_sana(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v; of twice the channels the second half is a learned variance and left out."""
    inputs = {"encoder_hidden_states": cond["text"], "encoder_attention_mask": cond["mask"]}
    output = network(x_t, **inputs, timestep=times * network.config.timestep_scale, return_dict=False)[0]
    return output[:, : x_t.shape[1]]


class Sana(FlowTextToImage):
    """A condition has `text` [b, 300, width] and `mask` [b, 300]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(SanaTransformer2DModel, predict_sana, middle_block)
    }
    groups: ClassVar[Mapping[str, str]] = GROUPS
    limits: ClassVar[Mapping[str, int]] = {"text_encoder": TOKENS}
    padding_side: ClassVar[str] = "right"

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        with self.text_encoders["text_encoder"].on_device():
            rows = [self._encoded(text.lower().strip()) for text in texts]
        text, mask = (torch.cat(values) for values in zip(*rows, strict=True))
        return {"text": text, "mask": mask}

    def _encoded(self, text: str) -> tuple[Float[Tensor, "1 300 width"], Int[Tensor, "1 300"]]:
        encoder = self.text_encoders["text_encoder"]
        if not text:
            return encoder.masked([text])
        instruction = len(encoder.tokenizer(INSTRUCTION).input_ids)
        states, mask = replace(encoder, limit=instruction + TOKENS - 2).masked([INSTRUCTION + text])
        own = [0, *range(-TOKENS + 1, 0)]  # the start of text, and what follows the instruction
        return states[:, own], mask[:, own]


PIPELINES = {"SanaPipeline": Sana}
