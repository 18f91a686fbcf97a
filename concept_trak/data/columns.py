"""The text columns of samples, read without their images: ids, captions, labels, and the words of a caption."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_trak import UserError
from concept_trak.attribution.denoiser import Conditioning
from concept_trak.attribution.numerics import choice
from concept_trak.config import DataConfig
from concept_trak.data.format import SourceRow, check_columns, labels_of_row, read_rows, sample_id, survey_data
from concept_trak.data.inventory import Survey
from concept_trak.data.shard import Shard, Source, whole

WORD = re.compile(r"\w+")


def caption_of(values: dict[str, Any], name: str, data: DataConfig) -> str:
    """The caption of the sample `name`; empty if it has none.

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
    """The lines that are not empty, without white space around them."""
    return filter(None, (line.strip() for line in text.split("\n")))


@dataclass(frozen=True)
class Annotation:
    """The caption of one sample, "" if it has none, and its labels as text."""

    caption: str
    labels: dict[str, str]


def annotations(shard: Shard, data: DataConfig) -> dict[str, Annotation]:
    """By sample id, for every row of a shard.

    Raises:
        UserError: the source is no longer the version that was planned.
    """
    ids = [data.id_column] if data.id_column else []
    columns = list(dict.fromkeys([*ids, *caption_columns(data), *data.label_columns]))
    named = ((sample_id(row, data), row) for row in read_rows(shard, data, columns))
    return {i: Annotation(_caption(row, i, data), labels_of_row(row, data)) for i, row in named}


def _caption(row: SourceRow, name: str, data: DataConfig) -> str:
    try:
        return caption_of(row.values, name, data)
    except UserError:  # not text: the row is a reject, which has no score to sum
        return ""


def caption_words(text: str) -> frozenset[str]:
    """The words of a caption, each once, without case: runs of letters, digits and "_" of any script."""
    return frozenset(WORD.findall(text.casefold()))


def caption_columns(data: DataConfig) -> tuple[str, ...]:
    """The columns with captions, in the order of their priority; none for an unconditional model."""
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


def survey(data: DataConfig, conditioning: Conditioning = "text") -> Survey:
    """The data set's files, once their columns and ids are known to be usable by a model of this conditioning.

    Raises:
        UserError: nothing there, a column missing or of another type, ids that occur twice.
    """
    if not data.caption_column and conditioning != "none":
        raise UserError(
            f"data.caption_column is empty, and the model's conditioning is {conditioning}; name the column that has it"
        )
    if (data.captions == "class") != (conditioning == "class") and conditioning != "none":
        remedy = "class" if conditioning == "class" else "first"
        raise UserError(
            f"data.captions={data.captions}, and the model's conditioning is {conditioning}; set data.captions={remedy}"
        )
    surveyed = check_columns(survey_data(data), data)
    require_unique_ids(surveyed.sources, data)
    return surveyed


def require_unique_ids(sources: Sequence[Source], data: DataConfig) -> None:
    """Check that ids are unique over the whole data set, with 8 bytes of memory for each row.

    Raises:
        UserError: naming some of the ids that occur twice, or a source where they are missing.
    """
    if not data.id_column:
        return
    hashes = [np.fromiter((_hash(i) for i in _ids(source, data)), np.uint64) for source in sources]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if repeated:
        examples = sorted({i for source in sources for i in _ids(source, data) if _hash(i) in repeated})[:5]
        raise UserError(
            f"data.id_column={data.id_column!r} is not unique: {', '.join(i[:80] for i in examples)} occur more than "
            "once; name a column of unique ids, or leave data.id_column empty to have them made"
        )


def _ids(source: Source, data: DataConfig) -> Iterator[str]:
    for row in read_rows(whole(source), data, [data.id_column]):
        if row.values[data.id_column] is None and row.flaw is None:
            raise UserError(
                f"{source.uri} has rows without an id; fill them, or leave data.id_column empty to have ids made"
            )
        yield sample_id(row, data)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
