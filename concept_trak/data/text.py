"""What is written about samples, read without their images: ids, captions, labels, and the words of a caption."""

import re
from dataclasses import dataclass

from concept_trak.config import DataConfig
from concept_trak.data.caption import caption, caption_columns
from concept_trak.data.format import Row, rows, sample_id
from concept_trak.data.shard import Shard

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Written:
    """About one sample: its caption, "" where there is none, and its labels as text."""

    caption: str
    labels: dict[str, str]


def written(shard: Shard, data: DataConfig) -> dict[str, Written]:
    """By sample id, for every row of a shard.

    Raises:
        ValueError: the source is no longer the version that was planned.
    """
    ids = [data.id_column] if data.id_column else []
    columns = list(dict.fromkeys([*ids, *caption_columns(data), *data.label_columns]))
    named = ((sample_id(row, data), row) for row in rows(shard, data, columns))
    return {i: Written(_caption(row, i, data), {c: str(row.values[c]) for c in data.label_columns}) for i, row in named}


def _caption(row: Row, name: str, data: DataConfig) -> str:
    try:
        return caption(row.values, name, data)
    except ValueError:  # of another type than text: the row is a reject, so nobody asks
        return ""


def words(text: str) -> frozenset[str]:
    """The words of a caption, each once, without case: runs of letters, digits and "_" of any script."""
    return frozenset(WORD.findall(text.casefold()))
