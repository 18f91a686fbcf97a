"""Text-to-image pipelines as diffusers saves them: a denoising network that listens to a text encoder.

Stable Diffusion 1.x and 2.x stand here; families with other networks, encoders or conditions say what differs.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition
from concept_trak.models.pipeline import DenoisingNetwork, Pipeline
from concept_trak.models.text_encoder import TextEncoder, open_text_encoder, tokenizer_of

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def predict_text_to_image(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    return network(x_t, times, encoder_hidden_states=cond["text"], return_dict=False)[0]


class TextToImage(Pipeline):
    """A condition has `text` [b, tokens, width]. `conditioners`: the encoders that must be there, with tokenizers."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "unet": DenoisingNetwork(UNet2DConditionModel, predict_text_to_image, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")

    def _read_conditioners(self, index: dict[str, str], dtype: torch.dtype, device: str) -> None:
        heard = [encoder for encoder in ENCODERS if encoder in index]
        self.readers = {encoder: self._reader(index, encoder, dtype, device) for encoder in heard}

    def _reader(self, index: dict[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        return open_text_encoder(self.path, index, encoder, dtype, device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """Text encodings, padded to the model's own length.

        There is an attention mask only where the text encoder's configuration asks for one.
        """
        return {"text": self.readers["text_encoder"].last(texts)}

    def require_whole(self, text: str) -> None:
        for encoder, reader in self.readers.items():
            if (length := reader.length(text)) > reader.limit:
                raise ValueError(
                    f"{text!r} has {length} tokens, and the model's {encoder} reads {reader.limit}, those around the "
                    "text included: the rest would be ignored. Shorten it."
                )

    def _conditioning_parts(self) -> tuple[str, ...]:
        return tuple(part for encoder in self.readers for part in (encoder, tokenizer_of(encoder)))


PIPELINES = {name: TextToImage for name in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")}
