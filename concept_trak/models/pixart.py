"""PixArt: a transformer over patches, conditioned on T5 with its padding masked in every layer (Chen et al. 2023).

As in `PixArtAlphaPipeline`: texts in small letters, of 120 tokens (300 in `PixArtSigmaPipeline`), and the tokens' mask
goes to the text encoder and to every cross attention. A transformer that was trained with sizes (1024 pixels) gets
those of an uncropped image of its own resolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.pipeline import DenoisingNetwork, middle_block
from concept_trak.models.text_encoder import TextEncoder
from concept_trak.models.text_to_image import TextToImage


def predict_pixart(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]; the second half of twice the channels is a learned variance, which is left out."""
    sizes = {"resolution": cond.get("resolution"), "aspect_ratio": cond.get("aspect_ratio")}
    inputs = {"encoder_hidden_states": cond["text"], "timestep": times, "added_cond_kwargs": sizes}
    return network(x_t, **inputs, encoder_attention_mask=cond.get("mask"), return_dict=False)[0][:, : x_t.shape[1]]


class PixArt(TextToImage):
    """A condition has `text` [b, tokens, width]; with T5 also `mask` [b, tokens]; with sizes `resolution` [b, 2], the
    height and width in pixels, and `aspect_ratio` [b, 1].

    With CLIP's kind of text encoder, as in `small.patch_pipeline`, padding is read like any token: so it was trained.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(PixArtTransformer2DModel, predict_pixart, middle_block)
    }
    tokens: ClassVar[int] = 120

    def _open_encoder(self, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        opened = super()._open_encoder(classes, encoder, dtype, device)
        return replace(opened, limit=self.tokens) if _is_t5(opened) else opened

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        encoder = self.text_encoders["text_encoder"]
        if not _is_t5(encoder):
            return {**super().encode(texts), **self._sizes(len(texts))}
        text, mask = encoder.masked([text.lower().strip() for text in texts])
        return {"text": text, "mask": mask, **self._sizes(len(texts))}

    def _sizes(self, b: int) -> Condition:
        if not self.network.use_additional_conditions:
            return {}
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        side = float(self.resolution)
        return {"resolution": torch.full((b, 2), side, **options), "aspect_ratio": torch.ones(b, 1, **options)}


def _is_t5(encoder: TextEncoder) -> bool:
    return encoder.model.config.model_type == "t5"


class PixArtSigma(PixArt):
    tokens: ClassVar[int] = 300


PIPELINES = {"PixArtAlphaPipeline": PixArt, "PixArtSigmaPipeline": PixArtSigma}
