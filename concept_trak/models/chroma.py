"""Chroma: Flux without distillation and without CLIP; its modulation is computed from the time by one small network.

As in `ChromaPipeline`, T5 reads its padding behind a mask, and the transformer gets a mask of the text's tokens and one
token of padding. The mask is one number for each token, whose product for two tokens is added to their attention.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.flow_text_to_image import FlowTextToImage, pack, positions, unpack
from concept_trak.models.pipeline import DenoisingNetwork, middle_feed_forward


def predict_chroma(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    h, w = x_t.shape[2:]
    tokens, mask = pack(x_t), cond["mask"]
    inputs = {"encoder_hidden_states": cond["text"], "timestep": times}
    inputs |= {"attention_mask": torch.cat([mask, mask.new_ones(tokens.shape[:2])], 1)}
    inputs |= {"img_ids": positions(h // 2, w // 2, 3, x_t.device)}
    inputs |= {"txt_ids": torch.zeros(cond["text"].shape[1], 3, device=x_t.device)}
    return unpack(network(tokens, **inputs, return_dict=False)[0], h, w)


class Chroma(FlowTextToImage):
    """A condition has `text` [b, tokens of T5, width] and `mask` [b, tokens of T5]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(ChromaTransformer2DModel, predict_chroma, middle_feed_forward)
    }
    packing: ClassVar[int] = 2
    default_side: ClassVar[int | None] = 128
    time_of_noise: ClassVar[float] = 1.0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        text, mask = self.text_encoders["text_encoder"].masked(texts)
        places = torch.arange(mask.shape[1], device=mask.device)
        return {"text": text, "mask": (places <= mask.sum(1, keepdim=True)).to(self.dtype)}


PIPELINES: dict[str, type[Denoiser]] = {"ChromaPipeline": Chroma}
