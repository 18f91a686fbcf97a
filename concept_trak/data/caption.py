"""The caption of a row that may have several, none, or something else where text should be."""

from collections.abc import Iterator
from typing import Any

from concept_trak.config import DataConfig
from concept_trak.noise import choice


def caption(values: dict[str, Any], name: str, data: DataConfig) -> str:
    """The caption of the sample `name`; empty where it has none.

    Raises:
        ValueError: a column holds something else than text.
    """
    texts = [text for c in caption_columns(data) for text in _texts(c, values.get(c), data) if text.strip()]
    if data.captions == "join":
        return ", ".join(dict.fromkeys(texts))
    if not texts:
        return ""
    return texts[choice(len(texts), name, "caption")] if data.captions == "one" else texts[0]


def caption_columns(data: DataConfig) -> tuple[str, ...]:
    """The columns with captions, in the order in which they count; none where the model was told nothing."""
    return tuple(column for column in (data.caption_column, *data.other_captions) if column)


def _texts(column: str, value: Any, data: DataConfig) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif data.captions == "class" and isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(column, one, data)
    elif value is not None:
        raise ValueError(f"{column} is {value!r}, a {type(value).__name__}; expected text, or a list of texts")
