"""Stable Diffusion 3: a transformer on text and image tokens together, trained as a rectified flow.

Esser et al. (2024): x_t = (1 - sigma) x_0 + sigma eps, and the network predicts v = eps - x_0. Hence

    x_0 = x_t - sigma v,        eps = x_t + (1 - sigma) v,        alpha = 1 - sigma

t = 0 ... 999 are the scheduler's own 1000 noise levels, from the smallest to pure noise (alpha = 0). In eps units a
loss on v is weighted by (1 - sigma)^2, so pure noise teaches nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import GROUPS, Condition, Denoiser, Prediction
from concept_trak.models.noise_schedule import NoiseSchedule, rectified_flow
from concept_trak.models.pipeline import DenoisingNetwork, middle_block
from concept_trak.models.text_encoder import TextEncoder
from concept_trak.models.text_to_image import TextToImage

CLIPS = ("text_encoder", "text_encoder_2")
T5_LENGTH = 256
"""Tokens of the third encoder, as in `StableDiffusion3Pipeline`."""


def predict_sd3(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    inputs = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"], "timestep": times}
    return network(x_t, **inputs, return_dict=False)[0]


class StableDiffusion3(TextToImage):
    """A condition has `text` [b, tokens of CLIP and T5, width] and `pooled` [b, widths of both CLIPs].

    T5 may be missing (`text_encoder_3` null in model_index.json); then its tokens are zeros, as in diffusers.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(SD3Transformer2DModel, predict_sd3, middle_block)
    }
    # Text and image share each attention. attn2, where a block has one, is the image's own.
    groups: ClassVar[Mapping[str, str]] = {name: GROUPS[name] for name in ("all", "attention", "lora")}
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

    def _open_encoder(self, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        opened = super()._open_encoder(classes, encoder, dtype, device)
        return replace(opened, limit=T5_LENGTH) if encoder == "text_encoder_3" else opened

    def _read_schedule(self, scheduler: Any) -> NoiseSchedule:
        return rectified_flow(scheduler, f"{self.path}/scheduler")

    def __call__(self, x_t: Float[Tensor, "b c h w"], t: int, cond: Condition) -> Prediction:
        alpha, sigma = self.alpha[t].item(), self.sigma[t].item()
        times = torch.full((len(x_t),), 1000 * sigma, device=x_t.device)
        v = self.denoising.predict(self.network, x_t.to(self.dtype), times, cond).to(x_t.dtype)
        return Prediction(x_t - sigma * v, x_t + alpha * v)

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
