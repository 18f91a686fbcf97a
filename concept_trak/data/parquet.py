"""Training sets as Hugging Face `datasets` writes them: Parquet with `image: struct<bytes, path>` and captions.

An image may also be a plain binary column. Folders named `label=cat` are columns too. Encoded once, instead of images:
data.image_column names a column of x_0 as nested lists [c, h, w] (`Array3D`), and columns `condition.<name>` hold each
part of the model's condition, as in `latents.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data import arrow_types as types
from concept_trak.data.files import BLOCK_BYTES, Files, Listing, open_listed, open_planned, path_below, version
from concept_trak.data.format import Format, SourceRow, named_columns, require_columns
from concept_trak.data.inventory import LeftOutCounts, hive_columns
from concept_trak.data.latents import CONDITION, Precomputed
from concept_trak.data.shard import Shard, Source
from concept_trak.data.text import one_line

BATCH_ROWS, BATCH_BYTES = 256, 64 << 20
"""The most bytes of rows in memory at a time, whatever the size of a row group."""


def _sources(listing: Listing, files: Files, data: DataConfig, tally: LeftOutCounts) -> list[Source]:
    """Every Parquet file, by name."""
    sources = []
    for name, info in files.items():
        with open_listed(listing.fs, name) as file:
            rows = _opened(file, name).metadata.num_rows
        sources.append(Source(listing.fs.unstrip_protocol(name), version(info), rows))
    return sources


def _opened(file: Any, name: str) -> pq.ParquetFile:
    """A Parquet file that reads each column piece by piece.

    Raises:
        UserError: the bytes are not a Parquet file.
        OSError: storage failed.
    """
    try:
        return pq.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        _require_damage(error)
        raise UserError(
            f"{name} is not a readable Parquet file ({one_line(error)}); remove it from data.uri or write it again"
        ) from None


def _require_damage(error: BaseException) -> None:
    """Raises errors of storage again: to Arrow damaged bytes are an OSError too, but one without a number."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error


def _check(source: Source, data: DataConfig) -> Iterable[str]:
    """Check that every column that the settings name exists and has a usable type."""
    with fsspec.open(source.uri) as f:
        file = _opened(f, source.uri)
        schema, metadata = file.schema_arrow, file.metadata
    hive = hive_columns(path_below(source.uri, data.uri))
    there = list(dict.fromkeys([*schema.names, *hive]))
    unread = require_columns(data, there, f"not a column of {source.uri}")
    for key, column in named_columns(data):
        if schema.names.count(column) > 1:
            raise UserError(f"{key}={column!r} is {schema.names.count(column)} columns of {source.uri}; rename them")
        if column in schema.names:
            _require_type(key, column, schema.field(column).type, data)
    if data.image_column not in schema.names:
        raise UserError(f"data.image_column={data.image_column!r} is the name of a folder; name the column of images")
    _require_images(source, schema, metadata, data)
    return unread - set(_conditions(schema, data))


def _require_type(key: str, column: str, kind: pa.DataType, data: DataConfig) -> None:
    """
    Raises:
        UserError: the settings use a column in a way that its type does not allow.
    """
    if key == "data.image_column" and not types.is_image(kind) and not types.is_latent(kind):
        paths = "; a column of paths is not read: embed the images" if types.is_text(kind) else ""
        raise UserError(
            f"{key}={column!r} is {kind}; expected struct<bytes: binary, path: string>, binary, or latents as "
            f"list<list<list<float>>>{paths}"
        )
    if key in ("data.caption_column", "data.other_captions") and not types.holds_text(kind):
        if data.captions == "class" and types.is_whole_number(kind):
            return
        hint = "; set data.captions=class where it holds classes" if types.is_whole_number(kind) else ""
        raise UserError(f"{key}={column!r} holds {kind}; expected strings, or lists of strings{hint}")
    if key == "data.id_column" and not types.is_id(kind):
        raise UserError(f"{key}={column!r} holds {kind}; expected strings or integers")


def _require_images(source: Source, schema: pa.Schema, metadata: Any, data: DataConfig) -> None:
    """Check that images are embedded, and that latents have a condition."""
    kind = schema.field(data.image_column).type
    if types.is_latent(kind) and not _conditions(schema, data):
        raise UserError(
            f"data.image_column={data.image_column!r} holds latents, and {source.uri} has no {CONDITION}<name> beside "
            "them; write each part of the model's condition as such a column"
        )
    has_bytes, has_paths = (_has_values(metadata, f"{data.image_column}.{leaf}") for leaf in ("bytes", "path"))
    if pa.types.is_struct(kind) and has_paths and not has_bytes:
        raise UserError(
            f"data.image_column={data.image_column!r} of {source.uri} holds paths only, and no image; embed the images "
            "(in `datasets`: .to_parquet(...) with decoded images, or read the folder of images itself)"
        )


def _has_values(metadata: Any, path: str) -> bool:
    """Whether a leaf column may hold more than nulls, as far as the footer has statistics."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [g.column(i) for g in groups for i in range(g.num_columns) if g.column(i).path_in_schema == path]
    stats = [(chunk.statistics, chunk.num_values) for chunk in chunks]
    return any(s is None or not s.has_null_count or s.null_count < values for s, values in stats)


def _conditions(schema: pa.Schema, data: DataConfig) -> list[str]:
    """The columns of embeddings, if the images are latents."""
    if data.image_column not in schema.names or not types.is_latent(schema.field(data.image_column).type):
        return []
    return [name for name in schema.names if name.startswith(CONDITION)]


def _rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, their ids made of the file's name below `data.uri` and the row's number.

    Reads only the row groups they lie in, and of the last only what comes before the end of the shard.
    """
    below = path_below(shard.source, data.uri)
    hive = {c: value for c, value in hive_columns(below).items() if c in columns}
    with open_planned(shard) as f:
        file = _opened(f, shard.source)
        conditions = _conditions(file.schema_arrow, data) if data.image_column in columns else []
        wanted = [*(c for c in columns if c in file.schema_arrow.names), *conditions]
        for number, values in _values(file, shard, wanted):
            row = SourceRow(number, f"{below or 'rows'}:{number}", hive | values)
            if conditions:
                yield _encoded(row, data, conditions)
            else:
                yield _with_image(row, data) if data.image_column in columns else row


def _values(file: pq.ParquetFile, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the row, its values) of every row of a shard."""
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        low, high = max(shard.first_row, start), min(shard.first_row + shard.rows, start + count)
        if low < high and not columns:
            yield from ((number, {}) for number in range(low, high))
        elif low < high:
            for first, batch in _batches(file, group, columns, low - start, high - start, shard.source):
                for i, values in enumerate(_python_rows(batch)):
                    yield start + first + i, values
        start += count


def _batches(
    file: pq.ParquetFile, group: int, columns: Sequence[str], low: int, high: int, name: str
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, batch) of rows low ... high - 1 of a row group, little of it in memory at a time.

    Raises:
        UserError: the row group is damaged.
        OSError: storage failed.
    """
    metadata = file.metadata.row_group(group)
    fitting = BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)
    size = max(1, min(BATCH_ROWS, high - low, fitting))
    while low < high:
        start = 0
        try:
            for batch in file.iter_batches(size, row_groups=[group], columns=list(columns)):
                first, stop = max(low, start), min(high, start + batch.num_rows)
                if first < stop:
                    low = stop
                    yield first, batch.slice(first - start, stop - first)
                start += batch.num_rows
                if low >= high:
                    return
        except (pa.ArrowException, OSError) as error:
            _require_damage(error)
            if size == 1:
                raise UserError(f"{name} is damaged in row group {group} ({one_line(error)}); write it again") from None
        size = 1  # some rows are too large to be read together: Arrow allows 2 GiB of a column


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = [_python_values(column) for column in batch.columns]
    return (dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True))


def _python_values(column: pa.Array) -> list[Any]:
    """The values of a column; text that is not UTF-8 has a lone surrogate in place of each wrong byte."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_python_value(value) for value in column]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode(errors="surrogateescape")


def _with_image(row: SourceRow, data: DataConfig) -> SourceRow:
    """The row with its image as a mapping, and a flaw where there is only the image's path."""
    image = row.values[data.image_column]
    if isinstance(image, bytes):
        image = {"bytes": image}
    path = (image or {}).get("path")
    flaw = None
    if path and (image or {}).get("bytes") is None:
        flaw = ("not_embedded", f"there is only the path {one_line(path)}, and no image; embed the images")
    return SourceRow(row.number, row.id, {**row.values, data.image_column: image}, flaw)


def _encoded(row: SourceRow, data: DataConfig, conditions: Sequence[str]) -> SourceRow:
    """The row with its latent and condition as tensors; floating-point numbers in float32."""
    try:
        condition = {name.removeprefix(CONDITION): torch.tensor(row.values[name]) for name in conditions}
        latent = torch.tensor(row.values[data.image_column])
    except (TypeError, ValueError, RuntimeError) as error:
        flaw = ("decode", f"its latent or a part of its condition is none: {one_line(error)}")
        return SourceRow(row.number, row.id, row.values, flaw)
    return SourceRow(row.number, row.id, {**row.values, data.image_column: Precomputed(latent, condition)})


FORMAT = Format((".parquet",), _sources, _check, _rows, hidden=("_",))
