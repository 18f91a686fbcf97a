"""Training sets as Hugging Face `datasets` writes them: Parquet with `image: struct<bytes, path>` and captions.

An image may also be a plain binary column. Folders named `label=cat` are columns too. Encoded once, instead of images:
data.image_column names a column of x_0 as nested lists [c, h, w] (`Array3D`), of clips [c, f, h, w], and columns
`condition.<name>` hold each part of the model's condition, as in `latents.py`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data import arrow_types as types
from concept_trak.data.files import BLOCK_BYTES, Files, Listing, open_planned, path_below, version
from concept_trak.data.format import (
    Findings,
    Format,
    Precomputed,
    RowImage,
    SourceRow,
    known_columns,
    named_columns,
    require_columns,
)
from concept_trak.data.image_pages import image_chunk, image_extents, read_between
from concept_trak.data.inventory import LeftOutCounts, hive_columns
from concept_trak.data.latents import CONDITION
from concept_trak.data.pages import PagesUnknownError
from concept_trak.data.shard import UNKNOWN, Shard, Source
from concept_trak.data.text import one_line

BATCH_ROWS, BATCH_BYTES = 256, 64 << 20
"""Of rows in memory at a time, whatever the size of a row group."""
RANGED = {"cache_type": "none"}  # each read is one request for these bytes, so that no image is read with a caption


def _sources(listing: Listing, files: Files, data: DataConfig, tally: LeftOutCounts) -> list[Source]:
    """Every Parquet file, by name."""
    return [
        Source(uri=listing.fs.unstrip_protocol(name), version=version(info), rows=UNKNOWN)
        for name, info in files.items()
    ]


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


def _rows(source: Source, data: DataConfig, findings: Findings) -> Iterator[SourceRow]:
    """The rows of a file, from its footer and its small columns; their ids are made of the file's name below `data.uri`
    and the row's number.
    """
    below = path_below(source.uri, data.uri)
    with open_planned(source.uri, source.version, **RANGED) as f:
        file, hive = _opened(f, source.uri), hive_columns(below)
        if not file.metadata.num_rows:
            return
        findings.unread += _unread(source.uri, file, hive, data)
        columns = [c for c in known_columns(data) if c in file.schema_arrow.names]
        hive_values = {c: value for c, value in hive.items() if c in known_columns(data)}
        path = _path_column(file.schema_arrow, data)
        extents = image_extents(f, file, data, findings)
        for number, values in _values(file, 0, file.metadata.num_rows, [*columns, *path], source.uri):
            image = values.pop(data.image_column, None) if path else None
            place = (one_line(image["path"]), "") if image and image["path"] else None
            yield SourceRow(number, f"{below or 'rows'}:{number}", hive_values | values, None, next(extents), place)


def _path_column(schema: pa.Schema, data: DataConfig) -> list[str]:
    """The leaf with the paths of images, which `datasets` writes beside their bytes."""
    kind = schema.field(data.image_column).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and types.is_text(kind.field("path").type)
    return [f"{data.image_column}.path"] if has_path else []


def _unread(where: str, file: pq.ParquetFile, hive: dict[str, Any], data: DataConfig) -> Iterable[str]:
    """The columns that no setting names, once those that they name are there and of types that can be used."""
    schema, metadata = file.schema_arrow, file.metadata
    columns = list(dict.fromkeys([*schema.names, *hive]))
    unread = require_columns(data, columns, f"not a column of {where}")
    for key, column in named_columns(data):
        if schema.names.count(column) > 1:
            raise UserError(f"{key}={column!r} is {schema.names.count(column)} columns of {where}; rename them")
        if column in schema.names:
            types.require_type(key, column, schema.field(column).type, data)
    if data.image_column not in schema.names:
        raise UserError(f"data.image_column={data.image_column!r} is the name of a folder; name the column of images")
    _require_images(where, schema, metadata, data)
    return unread - set(_conditions(schema, data))


def _require_images(where: str, schema: pa.Schema, metadata: Any, data: DataConfig) -> None:
    """That images are embedded, and latents have a condition."""
    kind = schema.field(data.image_column).type
    if types.is_latent(kind) and data.conditioning_image_column:
        raise UserError(
            f"data.conditioning_image_column is set, and data.image_column={data.image_column!r} of {where} holds "
            f"latents; leave it empty, and write the encoded image as {CONDITION}<name>"
        )
    if types.is_latent(kind) and not _conditions(schema, data):
        raise UserError(
            f"data.image_column={data.image_column!r} holds latents, and {where} has no {CONDITION}<name> beside "
            "them; write each part of the model's condition as such a column"
        )
    has_bytes, has_paths = (_has_values(metadata, f"{data.image_column}.{leaf}") for leaf in ("bytes", "path"))
    if pa.types.is_struct(kind) and has_paths and not has_bytes:
        raise UserError(
            f"data.image_column={data.image_column!r} of {where} holds paths only, and no image; embed the images "
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


def _images(shard: Shard, data: DataConfig) -> Iterator[RowImage]:
    """The images of all rows of a shard."""
    return _chosen(shard, data, range(shard.first_row, shard.first_row + shard.rows))


def _chosen(shard: Shard, data: DataConfig, numbers: Sequence[int]) -> Iterator[RowImage]:
    """The images of some rows: page by page where the index has their pages, else from the start of a row group on.
    Each page and each row group is read once. The index has no pages of conditioning images."""
    index = shard.index_table.select(["offset", "length", "skip", "file"])
    rows = index.take([number - shard.first_row for number in numbers]).to_pylist()
    with open_planned(shard.source, shard.version, **RANGED) as f:
        file = _opened(f, shard.source)
        paged = all(row["offset"] is not None for row in rows) and not data.conditioning_image_column
        images = _paged(f, file, rows, shard, data) if paged else _streamed(file, numbers, shard, data)
        yield from (_with_path(image, row["file"]) for image, row in zip(images, rows, strict=True))


def _paged(
    f: Any, file: pq.ParquetFile, rows: Sequence[Mapping[str, Any]], shard: Shard, data: DataConfig
) -> Iterator[RowImage]:
    """Each page that holds one of the rows is read once, and nothing else."""
    chunks = list(filter(None, (image_chunk(file, group, data) for group in range(file.num_row_groups))))
    for (offset, length), same in groupby(rows, key=lambda row: (row["offset"], row["length"])):
        chunk = next(chunk for chunk in chunks if chunk.start <= offset < chunk.end)
        try:
            values = chunk.values(read_between(f, offset, offset + length), partial(read_between, f))
        except (PagesUnknownError, pa.ArrowException, OSError) as error:
            _require_damage(error)
            raise UserError(f"{shard.source} is damaged at byte {offset} ({one_line(error)}); write it again") from None
        yield from (RowImage(values[row["skip"]]) for row in same)


def _streamed(file: pq.ParquetFile, numbers: Sequence[int], shard: Shard, data: DataConfig) -> Iterator[RowImage]:
    """Reads only the row groups with one of the rows, each from its start to the last of them."""
    conditions = _conditions(file.schema_arrow, data)
    conditioning = data.conditioning_image_column
    columns = [data.image_column, *filter(None, [conditioning]), *conditions]
    ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
    for _, same in groupby(numbers, key=partial(bisect_right, ends)):
        in_group = list(same)
        chosen = set(in_group)
        for number, values in _values(file, in_group[0], in_group[-1] + 1, columns, shard.source):
            if number in chosen:
                content, second = (_file_bytes(values.get(c)) for c in (data.image_column, conditioning))
                yield _encoded(values, data, conditions) if conditions else RowImage(content, conditioning=second)


def _file_bytes(value: Any) -> bytes | None:
    """An image file, of a plain column or of a struct<bytes, path>."""
    return value.get("bytes") if isinstance(value, dict) else value


def _with_path(image: RowImage, path: str | None) -> RowImage:
    """The image, and a flaw where there is only its path."""
    if path is None or image.content is not None:
        return image
    return RowImage(None, ("not_embedded", f"there is only the path {path}, and no image; embed the images"))


def _values(
    file: pq.ParquetFile, first: int, end: int, columns: Sequence[str], name: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the row, its values) of rows first ... end - 1."""
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        low, high = max(first, start), min(end, start + count)
        if low < high and not columns:
            yield from ((number, {}) for number in range(low, high))
        elif low < high:
            for at, batch in _batches(file, group, columns, low - start, high - start, name):
                for i, values in enumerate(_python_rows(batch)):
                    yield start + at + i, values
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


def _encoded(values: dict[str, Any], data: DataConfig, conditions: Sequence[str]) -> RowImage:
    """A row's latent and condition as tensors; floating-point numbers in float32."""
    try:
        condition = {name.removeprefix(CONDITION): torch.tensor(values[name]) for name in conditions}
        return RowImage(Precomputed(torch.tensor(values[data.image_column]), condition))
    except (TypeError, ValueError, RuntimeError) as error:
        return RowImage(None, ("decode", f"its latent or a part of its condition is none: {one_line(error)}"))


FORMAT = Format((".parquet",), _sources, _rows, _images, hidden=("_",), chosen=_chosen)
