"""A text encoder with its tokenizer: encodings of texts, and how many tokens of a text the encoder reads."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from concept_trak import UserError
from concept_trak.models.loading import load_part, load_settings
from concept_trak.models.pipeline_folder import class_of_part

T5_LIMIT = 512
"""Tokens that an encoder without a table of positions (T5) reads where its tokenizer sets no limit."""


@dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder.

    Attributes:
        tokenizer, model: of transformers.
        limit: the most tokens that the model reads, start and end included.
        learned: tokens that embeddings have added, each with its parts: one for each of its vectors. A text's token is
            written out as all of its parts before the tokenizer reads it.
        template: the text that a language model reads, with {} for the caption.
        on_device: the context in which the model's weights are where they are used.
    """

    tokenizer: Any
    model: Any
    limit: int
    learned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    template: str = "{}"
    on_device: Callable[[], AbstractContextManager[None]] = nullcontext

    def tokens(self, texts: Sequence[str]) -> Any:
        """`input_ids` and `attention_mask`, int64 [b, limit]: padded, and cut to the limit as in training."""
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(self._written_out(texts), max_length=self.limit, **options).to(self.model.device)

    def last(self, texts: Sequence[str]) -> Float[Tensor, "b limit width"]:
        """The last layer, with a mask only if the encoder's configuration has `use_attention_mask`."""
        masked = getattr(self.model.config, "use_attention_mask", False)
        with self.on_device():
            tokens = self.tokens(texts)
            return self.model(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)[0]

    def masked(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b limit width"], Int[Tensor, "b limit"]]:
        """The last layer with padding masked, and the mask, which the denoising network needs as well."""
        with self.on_device():
            tokens = self.tokens(texts)
            return self.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask

    def before_last(self, texts: Sequence[str]) -> tuple[Float[Tensor, "b limit width"], Tensor]:
        """The layer before the last, and the model's first output: of a projection, the end of text [b, projection]."""
        with self.on_device():
            output = self.model(self.tokens(texts).input_ids, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    def pooled(self, texts: Sequence[str]) -> Float[Tensor, "b width"]:
        """The end of text in the last layer of CLIP."""
        with self.on_device():
            return self.model(self.tokens(texts).input_ids).pooler_output

    def layers(self, texts: Sequence[str], chosen: Sequence[int]) -> tuple[list[Tensor], Int[Tensor, "b limit"]]:
        """The chosen layers of a language model, [b, limit, width] each, with padding masked, and the mask."""
        model = getattr(self.model, "model", self.model)  # without the head, whose outputs are as wide as its words
        with self.on_device():
            tokens = self.tokens(texts)
            inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "use_cache": False}
            states = model(**inputs, output_hidden_states=True).hidden_states
        return [states[i] for i in chosen], tokens.attention_mask

    def length(self, text: str) -> int:
        """Tokens of a text before it is cut, start and end included."""
        return len(self.ids(text))

    def ids(self, text: str) -> list[int]:
        """The numbers of a text's tokens before it is cut, start and end included."""
        return self.tokenizer(self._written_out([text])[0], verbose=False).input_ids

    def _written_out(self, texts: Sequence[str]) -> list[str]:
        return [self.template.replace("{}", self._with_parts(text)) for text in texts]

    def _with_parts(self, text: str) -> str:
        for token, parts in self.learned.items():
            pattern = rf"(?<!\w){re.escape(token)}(?!\w)" if is_word(token) else re.escape(token)
            # CLIP's tokenizer reads small letters, so a token is found in whatever letters it is written.
            text = re.sub(pattern, lambda _, parts=parts: " ".join(parts), text, flags=re.IGNORECASE)
        return text


def require_known_words(tokenizer: Any, model: Any, folder: Path) -> None:
    """Check that the encoder has an embedding for every token of its tokenizer.

    Raises:
        UserError: the tokenizer is that of another model.
    """
    count, largest = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values(), default=-1)
    if largest >= count:
        raise UserError(
            f"{folder} has a token number {largest}, and the text encoder has {count} embeddings; expected the "
            "tokenizer that the encoder was trained with"
        )


def is_word(token: str) -> bool:
    """Whether a token could be part of a longer word, in which it must not be found."""
    return re.fullmatch(r"[\w-]+", token) is not None


def tokenizer_of(encoder: str) -> str:
    """`tokenizer_2` of `text_encoder_2`."""
    return encoder.replace("text_encoder", "tokenizer")


def open_text_encoder(
    path: Path, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str
) -> TextEncoder:
    """A text encoder of a pipeline directory, frozen, with its tokenizer.

    Args:
        path: the pipeline directory.
        classes: the class of every part.
        encoder: `text_encoder`, `text_encoder_2` or `text_encoder_3`.
        dtype, device: the precision and the place of its weights.

    Raises:
        UserError: the encoder or its tokenizer cannot be read.
    """
    words = tokenizer_of(encoder)
    kind = class_of_part(transformers, classes, words)
    # A processor reads pictures too, and may need torchvision; captions need only the tokenizer in its folder.
    tokenizer = load_settings(transformers.AutoTokenizer if "Processor" in kind.__name__ else kind, path, words)
    model = load_part(class_of_part(transformers, classes, encoder), path, encoder, dtype, device)
    require_known_words(tokenizer, model, path / words)
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", T5_LIMIT))
    return TextEncoder(tokenizer=tokenizer, model=model.requires_grad_(False), limit=limit)
