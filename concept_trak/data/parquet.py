"""Training sets as Hugging Face `datasets` writes them: Parquet with `image: struct<bytes, path>` and captions.

Encoded once, instead of images: data.image_column names a column of x_0 as nested lists [c, h, w] (`Array3D`), and
columns `condition.<name>` hold each part of the model's condition, as in `latents.py`.
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from concept_trak.config import DataConfig
from concept_trak.data.files import open_planned, path_below, version
from concept_trak.data.format import Files, Format, SourceRow, named_columns
from concept_trak.data.latents import CONDITION, Precomputed
from concept_trak.data.shard import Shard, Source
from concept_trak.store.tables import parquet_tail


def _sources(fs: Any, path: str, files: Files, data: DataConfig) -> list[Source]:
    """Every Parquet file, by name."""
    return [Source(fs.unstrip_protocol(name), version(info), _row_count(fs, name)) for name, info in files.items()]


def _row_count(fs: Any, file: str) -> int:
    """How many rows the footer states. Its bytes come first, because to Arrow a damaged one is an OSError too.

    Raises:
        ValueError: the bytes are no Parquet file, or nobody may read them.
        OSError: storage failed.
    """
    try:
        with fs.open(file) as f:
            tail = parquet_tail(f)
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{file} cannot be read ({error}); make it readable, or remove it from data.uri") from error
    try:
        return pq.read_metadata(pa.BufferReader(tail)).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is not a readable Parquet file ({error}); remove it from data.uri or write it again"
        ) from None


def _check(source: Source, data: DataConfig) -> None:
    """That every column a run names is there and of a type it can use.

    Raises:
        ValueError: a column is missing (with the nearest name) or of another type.
    """
    with fsspec.open(source.uri) as f:
        schema = pq.read_schema(f)
    for key, column in named_columns(data):
        if column not in schema.names:
            near = difflib.get_close_matches(column, schema.names, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{key}={column!r} is not a column of {source.uri} (columns: {', '.join(schema.names)}){hint}"
            )
    kind = schema.field(data.image_column).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0) and not _is_latent(kind):
        raise ValueError(
            f"data.image_column={data.image_column!r} is {kind}; expected struct<bytes: binary, path: string>, or "
            "latents as list<list<list<float>>>"
        )
    if _is_latent(kind) and not _conditions(schema, data):
        raise ValueError(
            f"data.image_column={data.image_column!r} holds latents, and {source.uri} has no {CONDITION}<name> beside "
            "them; write each part of the model's condition as such a column"
        )
    texts = [one for one in named_columns(data) if one[0] in ("data.caption_column", "data.other_captions")]
    for key, column in texts:
        kind = schema.field(column).type
        if data.captions == "class" and pa.types.is_integer(kind):
            continue
        if not (
            _is_text(kind) or ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type))
        ):
            hint = "; set data.captions=class where it holds classes" if pa.types.is_integer(kind) else ""
            raise ValueError(f"{key}={column!r} holds {kind}; expected strings, or lists of strings{hint}")
    kind = schema.field(data.id_column).type if data.id_column else pa.string()
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"data.id_column={data.id_column!r} holds {kind}; expected strings or integers")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_latent(kind: pa.DataType) -> bool:
    """Numbers nested three deep, whichever lists they are written as."""
    for _ in range(3):
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return False
        kind = kind.value_type
    return pa.types.is_floating(kind)


def _conditions(schema: pa.Schema, data: DataConfig) -> list[str]:
    """The columns of embeddings where the images are latents."""
    if data.image_column not in schema.names or not _is_latent(schema.field(data.image_column).type):
        return []
    return [name for name in schema.names if name.startswith(CONDITION)]


def _rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, their ids made of the file's name below `data.uri` and the row's number.

    Reads only the row groups they lie in.
    """
    made = path_below(shard.source, data.uri) or "rows"
    with open_planned(shard) as f:
        file, start = pq.ParquetFile(f), 0
        beside = _conditions(file.schema_arrow, data) if data.image_column in columns else []
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            low, high = max(shard.first_row, start), min(shard.first_row + shard.rows, start + count)
            if low < high:
                table = file.read_row_group(group, columns=[*columns, *beside]).slice(low - start, high - low)
                for n, values in enumerate(_unpacked(table), low):
                    yield (
                        _encoded(SourceRow(n, f"{made}:{n}", values), data, beside)
                        if beside
                        else SourceRow(n, f"{made}:{n}", values)
                    )
            start += count


def _encoded(row: SourceRow, data: DataConfig, beside: Sequence[str]) -> SourceRow:
    """The row with its latent and condition as tensors; floating-point numbers in float32."""
    try:
        condition = {name.removeprefix(CONDITION): torch.tensor(row.values[name]) for name in beside}
        latent = torch.tensor(row.values[data.image_column])
    except (TypeError, ValueError, RuntimeError) as error:
        return SourceRow(
            row.number, row.id, row.values, ("decode", f"its latent or a part of its condition is none: {error}")
        )
    return SourceRow(row.number, row.id, {**row.values, data.image_column: Precomputed(latent, condition)})


def _unpacked(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


FORMAT = Format((".parquet",), _sources, _check, _rows)
