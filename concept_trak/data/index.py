"""What is known of every row of a source before an image is read: one table, made once for a version of its file.

row                 number in the source
id                  the sample's id
caption             the text that the model is told; "" where there is none
label.<column>      the value of each label column as text, or null
words               the words of the caption, each once (`caption_words`)
reason, message     why no sample can be made of the row, as far as that is known without its image; else null
offset, length      where the bytes lie from which the image is read; null where a row has a file of its own
skip                rows between `offset` and this one
file, file_version  the name of the image's own file in its folder, or the path that a row names instead of an image
width, height       of the image file in a tar, in pixels, before its EXIF orientation; null where they are unknown, and
                    missing in an index that was written before there were sizes
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.captions import caption_of, caption_words
from concept_trak.data.format import Findings, SourceRow, checked_text, format_of, is_blank, labels_of_row, sample_id
from concept_trak.data.inventory import LeftOut
from concept_trak.data.shard import NO_LAYOUT, Layout, Shard, Source
from concept_trak.data.text import text_problem
from concept_trak.store.tables import compute as pc

GROUP_COUNTS = pa.schema({"kind": pa.string(), "label": pa.string(), "value": pa.string(), "samples": pa.int64()})
"""`kind` is label or word; `label` names the column of a label."""
VERSION = 1
"""Rises when the same data would be indexed otherwise."""
BATCH_ROWS = 4096
SIZE = ("width", "height")
LABEL = "label."


def schema(data: DataConfig) -> pa.Schema:
    """The columns of an index."""
    labels = [(f"{LABEL}{column}", pa.string()) for column in data.label_columns]
    return pa.schema([
        ("row", pa.int64()), ("id", pa.string()), ("caption", pa.string()), *labels,
        ("words", pa.list_(pa.dictionary(pa.int32(), pa.string()))), ("reason", pa.string()), ("message", pa.string()),
        ("offset", pa.int64()), ("length", pa.int64()), ("skip", pa.int32()),
        ("file", pa.string()), ("file_version", pa.string()), *((side, pa.int32()) for side in SIZE),
    ])  # fmt: skip


def with_sizes(index: pa.Table) -> pa.Table:
    """An index with the columns of `SIZE`; an index that was written before there were sizes gets nulls."""
    for side in SIZE:
        if side not in index.column_names:
            index = index.append_column(side, pa.nulls(index.num_rows, pa.int32()))
    return index


def index_settings(data: DataConfig) -> dict[str, Any]:
    """Every setting that changes an index, and nothing else: what names the folder of indices."""
    columns = ("image_column", "caption_column", "other_captions", "captions", "id_column", "label_columns")
    settings = {"index": VERSION, **{name: getattr(data, name) for name in ("uri", "format", *columns)}}
    conditioning = data.conditioning_image_column  # newer than some indices, whose names it must not change
    return settings | ({"conditioning_image_column": conditioning} if conditioning else {})


@dataclass(frozen=True)
class SourceIndex:
    """What is known of one source, or of one range of a folder.

    Attributes:
        table: its rows (`schema`).
        left_out: what is in it and in no sample.
        unread: the columns that no setting names.
        lacking: why a column that the settings name is not there; "" where all are.
        layout: how the images lie in it.
    """

    table: pa.Table
    left_out: tuple[LeftOut, ...] = ()
    unread: tuple[str, ...] = ()
    lacking: str = ""
    layout: Layout = NO_LAYOUT


def index_source(source: Source, data: DataConfig) -> SourceIndex:
    """Everything that is known of a source without decoding an image.

    Raises:
        UserError: the source cannot be read, or a column that the settings name is missing or of another type.
    """
    findings, names = Findings(), schema(data)
    rows = checked_text(format_of(source, data).rows(source, data, findings))
    batches = list[pa.RecordBatch]()
    while block := list(islice(rows, BATCH_ROWS)):
        batches.append(_batch(block, source, data, names))
    table = pa.Table.from_batches(batches, names)
    return SourceIndex(
        table=table,
        left_out=findings.left_out.left_out(),
        unread=tuple(dict.fromkeys(findings.unread)),
        lacking=findings.lacking,
        layout=findings.layout,
    )


def _batch(rows: Sequence[SourceRow], source: Source, data: DataConfig, names: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([_known(row, source, data) for row in rows], names)


def _known(row: SourceRow, source: Source, data: DataConfig) -> dict[str, Any]:
    """One row of the table."""
    if data.id_column and row.values.get(data.id_column) is None and row.flaw is None:
        raise UserError(
            f"{source.uri} has rows without an id; fill them, or leave data.id_column empty to have ids made"
        )
    name, flaw = sample_id(row, data), row.flaw
    if flaw is None and data.id_column and is_blank(row.values.get(data.id_column)):
        flaw = ("no_id", f"{data.id_column} is empty; give the row an id, or leave data.id_column empty")
    reason, message = flaw or (None, None)
    try:
        caption = caption_of(row.values, name, data)
    except UserError as error:
        caption = ""
        if reason is None:
            reason, message = "caption_type", str(error)
    if reason is None and (problem := text_problem("the caption", caption)):  # captions may be joined
        reason, message, caption = "text", problem, ""
    labels = {f"{LABEL}{column}": value for column, value in labels_of_row(row, data).items()}
    offset, length, skip = row.extent or (None, None, None)
    file, version = row.file or (None, None)
    width, height = row.size or (None, None)
    return {
        "row": row.number, "id": name, "caption": caption, **labels, "words": sorted(caption_words(caption)),
        "reason": reason, "message": message, "offset": offset, "length": length, "skip": skip,
        "file": file, "file_version": version, "width": width, "height": height,
    }  # fmt: skip


@dataclass(frozen=True)
class SourceFacts:
    """What is planned from: a source, or a range of a folder, its rows, and the file that holds its index.

    Attributes:
        uri, version, first_row, rows: the source, its version and its rows.
        vocabulary: how many different labels and words it has.
        bytes, sha256: of the file with its index.
        left_out, unread, lacking, layout: as in `SourceIndex`; a record written before has no layout.
    """

    uri: str
    version: str
    first_row: int
    rows: int
    vocabulary: int
    bytes: int
    sha256: str
    left_out: tuple[LeftOut, ...] = ()
    unread: tuple[str, ...] = ()
    lacking: str = ""
    layout: Layout = NO_LAYOUT


@dataclass(frozen=True)
class IndexedRow:
    """One row of a shard, as Python values; `flaw` is (reason, message) where no sample can be made of it."""

    number: int
    id: str
    caption: str
    labels: dict[str, str]
    flaw: tuple[str, str] | None


def indexed_rows(shard: Shard) -> Iterator[IndexedRow]:
    """The rows of a shard whose index is read, in order."""
    table = shard.index_table
    labels = [name for name in table.column_names if name.startswith(LABEL)]
    for values in table.select(["row", "id", "caption", "reason", "message", *labels]).to_pylist():
        flaw = (values["reason"], values["message"]) if values["reason"] else None
        row_labels = {name.removeprefix(LABEL): values[name] for name in labels if values[name] is not None}
        yield IndexedRow(number=values["row"], id=values["id"], caption=values["caption"], labels=row_labels, flaw=flaw)


def label_values(shard: Shard) -> Iterator[tuple[str, dict[str, str]]]:
    """(sample id, its labels as text) of every row of a shard."""
    return ((row.id, row.labels) for row in indexed_rows(shard))


def count_groups(index: pa.Table) -> pa.Table:
    """How many rows of an index have each label and each word: `GROUP_COUNTS`."""
    columns = [("word", "", pc.list_flatten(index["words"]))]
    columns += [("label", n.removeprefix(LABEL), index[n]) for n in index.column_names if n.startswith(LABEL)]
    return pa.concat_tables(_counted(kind, label, values) for kind, label, values in columns)


def _counted(kind: str, label: str, values: pa.ChunkedArray) -> pa.Table:
    counts = values.cast(pa.string()).drop_null().value_counts()
    keys = [pa.array([text] * len(counts), pa.string()) for text in (kind, label)]
    return pa.Table.from_arrays([*keys, counts.field("values"), counts.field("counts")], schema=GROUP_COUNTS)
