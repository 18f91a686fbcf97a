"""PixArt: a transformer over patches that listens to T5, padding masked in every layer.

Chen et al. (2023), as `PixArtAlphaPipeline` asks its network: texts in small letters, of 120 tokens (300 in
`PixArtSigmaPipeline`), and the tokens' mask goes to the text encoder and to every cross attention. Where the
transformer was trained with sizes (1024 pixels), it is told those of an uncropped image of its own resolution.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.pipeline import DenoisingNetwork, halfway
from concept_trak.models.text_encoder import TextEncoder
from concept_trak.models.text_to_image import TextToImage


def predict_pixart(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """Where it also learns a variance, that is the second half of the channels and not asked for."""
    sizes = {"resolution": cond.get("resolution"), "aspect_ratio": cond.get("aspect_ratio")}
    asked = {"encoder_hidden_states": cond["text"], "timestep": times, "added_cond_kwargs": sizes}
    return network(x_t, **asked, encoder_attention_mask=cond.get("mask"), return_dict=False)[0][:, : x_t.shape[1]]


class PixArt(TextToImage):
    """A condition has `text` [b, tokens, width]; with T5 also `mask` [b, tokens]; with sizes `resolution` [b, 2], the
    height and width in pixels, and `aspect_ratio` [b, 1].

    With CLIP's kind of text encoder, as in `small.patch_pipeline`, padding is read like any token: so it was trained.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(PixArtTransformer2DModel, predict_pixart, halfway)
    }
    tokens: ClassVar[int] = 120

    def _reader(self, index: dict[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        reader = super()._reader(index, encoder, dtype, device)
        return replace(reader, limit=self.tokens) if _is_t5(reader) else reader

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        if not _is_t5(self.readers["text_encoder"]):
            return {**super().encode(texts), **self._sizes(len(texts))}
        small = [text.lower().strip() for text in texts]
        text, mask = self.readers["text_encoder"].masked(small)
        return {"text": text, "mask": mask, **self._sizes(len(texts))}

    def _sizes(self, b: int) -> Condition:
        if not self.network.use_additional_conditions:
            return {}
        ways: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        side = float(self.resolution)
        return {"resolution": torch.full((b, 2), side, **ways), "aspect_ratio": torch.ones(b, 1, **ways)}


def _is_t5(reader: TextEncoder) -> bool:
    return reader.model.config.model_type == "t5"


class PixArtSigma(PixArt):
    tokens: ClassVar[int] = 300


PIPELINES = {"PixArtAlphaPipeline": PixArt, "PixArtSigmaPipeline": PixArtSigma}
