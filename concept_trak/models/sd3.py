"""Stable Diffusion 3 and 3.5: a transformer on text and image tokens together (Esser et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.flow_text_to_image import FlowTextToImage
from concept_trak.models.pipeline import DenoisingNetwork, middle_feed_forward

CLIPS = ("text_encoder", "text_encoder_2")
T5_LENGTH = 256
"""Tokens of the third encoder, as in `StableDiffusion3Pipeline`."""


def predict_sd3(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    inputs = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"], "timestep": times}
    return network(x_t, **inputs, return_dict=False)[0]


class StableDiffusion3(FlowTextToImage):
    """A condition has `text` [b, tokens of CLIP and T5, width] and `pooled` [b, widths of both CLIPs].

    T5 may be missing (`text_encoder_3` null in model_index.json); then its tokens are zeros, as in diffusers.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(SD3Transformer2DModel, predict_sd3, middle_feed_forward)
    }
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    limits: ClassVar[Mapping[str, int]] = {"text_encoder_3": T5_LENGTH}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """The two CLIPs side by side, padded with zeros to the network's width, then T5's tokens."""
        encodings = [self.text_encoders[name].before_last(texts) for name in CLIPS]
        config: Any = self.network.config
        width = config["joint_attention_dim"]
        clip = torch.cat([states for states, _ in encodings], -1)
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        text = torch.cat([clip, self._t5(texts, width)], 1)
        return {"text": text, "pooled": torch.cat([pooled for _, pooled in encodings], -1)}

    def _t5(self, texts: Sequence[str], width: int) -> Tensor:
        if "text_encoder_3" not in self.text_encoders:
            return torch.zeros(len(texts), T5_LENGTH, width, device=self.device, dtype=self.dtype)
        return self.text_encoders["text_encoder_3"].last(texts)


PIPELINES: dict[str, type[Denoiser]] = {"StableDiffusion3Pipeline": StableDiffusion3}
