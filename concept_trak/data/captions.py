"""The caption of a row, taken from its columns by the settings, and the caption's words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.numerics import choice
from concept_trak.config import DataConfig

WORD = re.compile(r"\w+")


def caption_of(values: Mapping[str, Any], name: str, data: DataConfig) -> str:
    """The caption of the sample `name`; empty if it has none.

    Args:
        values: the row, by column.
        name: the sample's id, which decides a random choice.
        data: the settings of the data.

    Raises:
        UserError: a column has a value that is not text.
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
    """The lines that are not empty, without surrounding white space."""
    return filter(None, (line.strip() for line in text.split("\n")))


def caption_words(text: str) -> frozenset[str]:
    """The set of a caption's words, case-folded. A word is a run of letters, digits and "_" of any script."""
    return frozenset(WORD.findall(text.casefold()))


def caption_columns(data: DataConfig) -> tuple[str, ...]:
    """The columns with captions, the preferred one first; none for an unconditional model."""
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
