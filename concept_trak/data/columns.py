"""What is written about samples, read without their images: ids, captions, labels, and the words of a caption.

The caption of a row that may have several, none, or something else where text should be.

Whether the ids that a data set brings along name one sample each.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_trak.attribution.numerics import choice
from concept_trak.config import DataConfig
from concept_trak.data.format import SourceRow, read_rows, sample_id
from concept_trak.data.shard import Shard, Source, whole

WORD = re.compile(r"\w+")


def caption_of(values: dict[str, Any], name: str, data: DataConfig) -> str:
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


@dataclass(frozen=True)
class Annotation:
    """About one sample: its caption, "" where there is none, and its labels as text."""

    caption: str
    labels: dict[str, str]


def annotations(shard: Shard, data: DataConfig) -> dict[str, Annotation]:
    """By sample id, for every row of a shard.

    Raises:
        ValueError: the source is no longer the version that was planned.
    """
    ids = [data.id_column] if data.id_column else []
    columns = list(dict.fromkeys([*ids, *caption_columns(data), *data.label_columns]))
    named = ((sample_id(row, data), row) for row in read_rows(shard, data, columns))
    return {
        i: Annotation(_caption(row, i, data), {c: str(row.values[c]) for c in data.label_columns}) for i, row in named
    }


def _caption(row: SourceRow, name: str, data: DataConfig) -> str:
    try:
        return caption_of(row.values, name, data)
    except ValueError:  # of another type than text: the row is a reject, so nobody asks
        return ""


def caption_words(text: str) -> frozenset[str]:
    """The words of a caption, each once, without case: runs of letters, digits and "_" of any script."""
    return frozenset(WORD.findall(text.casefold()))


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


def require_unique_ids(found: Sequence[Source], data: DataConfig) -> None:
    """That ids are unique over the whole data set, in 8 bytes of memory a row; ids made from source and row always are.

    Raises:
        ValueError: naming some of the ids that occur twice, or a source where they are missing.
    """
    if not data.id_column:
        return
    hashes = [np.fromiter((_hash(i) for i in _ids(source, data)), np.uint64) for source in found]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice = set(values[counts > 1].tolist())
    if twice:
        examples = sorted({i for source in found for i in _ids(source, data) if _hash(i) in twice})[:5]
        raise ValueError(
            f"data.id_column={data.id_column!r} is not unique: {', '.join(examples)} occur more than once; name a "
            "column of unique ids, or leave data.id_column empty to have them made"
        )


def _ids(source: Source, data: DataConfig) -> Iterator[str]:
    for row in read_rows(whole(source), data, [data.id_column]):
        if row.values[data.id_column] is None and row.flaw is None:
            raise ValueError(
                f"{source.uri} has rows without an id; fill them, or leave data.id_column empty to have ids made"
            )
        yield sample_id(row, data)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
