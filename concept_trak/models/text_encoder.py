"""A text encoder with its tokenizer: what it makes of texts, and how much of a text it reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from torch import Tensor

from concept_trak.models.loading import class_of_part, from_folder, load_part

LONGEST = 512
"""Tokens that an encoder without a table of positions (T5) reads where its tokenizer sets no limit."""


class Vocabulary(TextualInversionLoaderMixin):
    """diffusers' way with learned tokens, which asks the pipeline that it belongs to where its parts run."""

    hf_device_map = None
    components: ClassVar[dict[str, Any]] = {}


@dataclass(frozen=True)
class TextEncoder:
    """`limit`: tokens it reads, those around the text included. `learned`: whether tokens were added to it; a text's
    token of several vectors then stands for all of them.
    """

    tokenizer: Any
    model: Any
    limit: int
    learned: bool = False

    def said(self, texts: Sequence[str]) -> list[str]:
        """Texts as the tokenizer is to see them."""
        if not self.learned:
            return list(texts)
        return list(Vocabulary().maybe_convert_prompt(list(texts), self.tokenizer))

    def tokens(self, texts: Sequence[str]) -> Any:
        """ids and mask [b, limit]: padded, and cut as in training."""
        ways: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(self.said(texts), max_length=self.limit, **ways).to(self.model.device)

    def last(self, texts: Sequence[str]) -> Tensor:
        """Its last layer [b, limit, width], masked only where the encoder's configuration asks for a mask."""
        tokens = self.tokens(texts)
        asks = getattr(self.model.config, "use_attention_mask", False)
        return self.model(tokens.input_ids, attention_mask=tokens.attention_mask if asks else None)[0]

    def masked(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Its last layer [b, limit, width] with padding masked, and that mask [b, limit], for who reads it on."""
        tokens = self.tokens(texts)
        return self.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask

    def before_last(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Its layer before the last [b, limit, width], and the projected end of text [b, projection]."""
        said = self.model(self.tokens(texts).input_ids, output_hidden_states=True)
        return said.hidden_states[-2], said[0]

    def length(self, text: str) -> int:
        """Tokens of a text, uncut, those around it included."""
        return len(self.tokenizer(self.said([text])[0], verbose=False).input_ids)


def with_embedding(reader: TextEncoder) -> TextEncoder:
    return replace(reader, learned=True)


def tokenizer_of(encoder: str) -> str:
    """`tokenizer_2` of `text_encoder_2`."""
    return encoder.replace("text_encoder", "tokenizer")


def open_text_encoder(path: Path, index: dict[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
    """An encoder of a pipeline directory, frozen, with the tokenizer that belongs to it.

    Raises:
        ValueError: one of them cannot be read.
    """
    words = tokenizer_of(encoder)
    tokenizer = from_folder(class_of_part(transformers, index, words), path / words)
    model = load_part(class_of_part(transformers, index, encoder), path / encoder, dtype, device).requires_grad_(False)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST))
    return TextEncoder(tokenizer, model, limit)
