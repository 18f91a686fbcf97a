"""The caption of a row, chosen among its columns as the settings say, and its words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.numerics import choice
from concept_trak.config import DataConfig

WORD = re.compile(r"\w+")


def caption_of(values: Mapping[str, Any], name: str, data: DataConfig) -> str:
    """The caption of the sample `name`; empty where it has none.

    Raises:
        UserError: a column holds something else than text.
    """
    texts = [text for c in caption_columns(data) for text in _texts(c, values.get(c), data) if text.strip()]
    if data.captions == "join":
        return ", ".join(dict.fromkeys(texts))
    if not texts:
        return ""
    if data.captions == "first_line":
        return next(_lines(texts[0]))
    if data.captions == "one_line":
        texts = [line for text in texts for line in _lines(text)]
    return texts[choice(len(texts), name, "caption")] if data.captions in ("one", "one_line") else texts[0]


def _lines(text: str) -> Iterator[str]:
    """The lines that are not empty, without white space around them."""
    return filter(None, (line.strip() for line in text.split("\n")))


def caption_words(text: str) -> frozenset[str]:
    """The words of a caption, each once, without case: runs of letters, digits and "_" of any script."""
    return frozenset(WORD.findall(text.casefold()))


def caption_columns(data: DataConfig) -> tuple[str, ...]:
    """The columns with captions, in the order in which they count; none for an unconditional model."""
    return tuple(column for column in (data.caption_column, *data.other_captions) if column)


def _texts(column: str, value: Any, data: DataConfig) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif data.captions == "class" and isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(column, inner, data)
    elif value is not None:
        raise UserError(f"{column} is {repr(value)[:80]}, a {type(value).__name__}; expected text, or a list of texts")
