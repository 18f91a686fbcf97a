"""Text-to-image pipelines of diffusers: a denoising network whose condition comes from a text encoder.

Stable Diffusion 1.x and 2.x are here. Families with other networks, encoders or conditions override what differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition
from concept_trak.data.text import one_line
from concept_trak.models.pipeline import DenoisingNetwork, Pipeline
from concept_trak.models.text_encoder import TextEncoder, open_text_encoder, tokenizer_of

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def predict_text_to_image(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w] of a UNet with cross attention."""
    return network(x_t, times, encoder_hidden_states=cond["text"], return_dict=False)[0]


class TextToImage(Pipeline):
    """A condition has `text` [b, tokens, width].

    Class attributes:
        conditioners: the encoders that must be there, with tokenizers.
        limits: the most tokens that an encoder reads, where the pipeline sets them.
        padding_side: the side of padding, where the pipeline sets it; "" is the tokenizer's own.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DConditionModel, predict_text_to_image, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    limits: ClassVar[Mapping[str, int]] = MappingProxyType({})
    padding_side: ClassVar[str] = ""

    def _read_conditioners(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> None:
        self.text_encoders = {
            encoder: self._open_encoder(classes, encoder, dtype, device) for encoder in ENCODERS if encoder in classes
        }

    def _open_encoder(self, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        opened = open_text_encoder(self.path, classes, encoder, dtype, device)
        if self.padding_side:
            opened.tokenizer.padding_side = self.padding_side
        return replace(opened, limit=self.limits.get(encoder, opened.limit))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """Text encodings, padded to the model's own length.

        There is an attention mask only if the text encoder's configuration has `use_attention_mask`.
        """
        return {"text": self.text_encoders["text_encoder"].last(texts)}

    def require_whole(self, text: str) -> None:
        for name, encoder in self.text_encoders.items():
            if (length := encoder.length(text)) > encoder.limit:
                raise UserError(
                    f"'{one_line(text, 200)}' has {length} tokens, and the model's {name} reads {encoder.limit}, start "
                    "and end of text included: the rest would be ignored. Shorten it."
                )

    def _conditioning_parts(self) -> tuple[str, ...]:
        return tuple(part for encoder in self.text_encoders for part in (encoder, tokenizer_of(encoder)))


PIPELINES = {name: TextToImage for name in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")}
