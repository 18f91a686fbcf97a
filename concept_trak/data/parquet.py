"""Training sets as Hugging Face `datasets` writes them: Parquet with `image: struct<bytes, path>` and captions."""

import difflib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak.config import DataConfig
from concept_trak.data.shard import Shard, Source
from concept_trak.store.place import without_secrets


def sources(uri: str) -> list[Source]:
    """Every Parquet file at `uri` (one file, or a folder searched to its leaves), by name.

    Raises:
        ValueError: nothing is there, it cannot be reached, or it holds no rows.
    """
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    try:
        files, exists = _files(fs, path), fs.exists(path)
    except FileNotFoundError:  # a bucket that does not exist; a missing folder is only empty
        files, exists = [], False
    except Exception as error:  # botocore's and google's own errors are no OSErrors
        raise ValueError(
            f"data.uri={uri!r} cannot be read ({type(error).__name__}: {without_secrets(error)}); check the address"
            " and the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
        ) from error
    if not files:
        what = "holds no .parquet files" if exists else "does not exist"
        raise ValueError(f"data.uri={uri!r} {what}; expected a Parquet file or a folder of them")
    found = [Source(fs.unstrip_protocol(f), _version(fs.info(f)), _rows(fs, f)) for f in files]
    if not any(s.rows for s in found):
        raise ValueError(f"data.uri={uri!r} has {len(files)} Parquet files but no rows; point it at the data set")
    return found


def _files(fs: Any, path: str) -> list[str]:
    if fs.isfile(path):
        return [path]
    named = (f for f in fs.find(path) if f.endswith(".parquet"))
    return sorted(f for f in named if not f.rpartition("/")[2].startswith((".", "_")))


def _version(info: dict[str, Any]) -> str:
    """The store's own etag; else size and modification time."""
    if etag := info.get("ETag") or info.get("etag"):
        return str(etag).strip('"')
    stamp = info.get("mtime", info.get("LastModified", info.get("created", "")))
    return f"{info['size']}-{stamp}"


def _rows(fs: Any, file: str) -> int:
    """How many rows the footer states. Its bytes come first, because to Arrow a damaged one is an OSError too.

    Raises:
        ValueError: the bytes are no Parquet file, or nobody may read them.
        OSError: storage failed.
    """
    try:
        with fs.open(file) as f:
            footer = _footer(f)
    except (FileNotFoundError, PermissionError) as error:
        raise ValueError(f"{file} cannot be read ({error}); make it readable, or remove it from data.uri") from error
    try:
        return pq.read_metadata(pa.BufferReader(footer)).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{file} is not a readable Parquet file ({error}); remove it from data.uri or write it again"
        ) from None


def _footer(file: Any) -> bytes:
    """The end of a Parquet file: the footer, its length in 4 bytes, and "PAR1"; only these of a file without them."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read()
    length = int.from_bytes(end[:4], "little") + 8 if end.endswith(b"PAR1") else 8
    file.seek(max(0, size - length))
    return file.read()


def check_columns(source: Source, data: DataConfig) -> None:
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
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise ValueError(
            f"data.image_column={data.image_column!r} is {kind}; expected struct<bytes: binary, path: string>"
        )
    for key, column in (("data.caption_column", data.caption_column), ("data.id_column", data.id_column)):
        kind = schema.field(column).type if column else pa.string()
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or (key == "data.id_column" and pa.types.is_integer(kind))
        ):
            raise ValueError(f"{key}={column!r} holds {kind}; expected strings")


def named_columns(data: DataConfig) -> list[tuple[str, str]]:
    """(configuration key, column) of every column the configuration names."""
    single = [("data.image_column", data.image_column), ("data.caption_column", data.caption_column)]
    ids = [("data.id_column", data.id_column)] if data.id_column else []
    return [*single, *ids, *(("data.label_columns", c) for c in data.label_columns)]


def rows(shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row in the source, its `columns`) of every row of a shard, in order. Reads only the row groups they lie in.

    Raises:
        ValueError: the source is no longer the version that was planned.
    """
    fs, path = fsspec.core.url_to_fs(shard.source, use_listings_cache=False)
    try:
        now = _version(fs.info(path))
    except FileNotFoundError:
        now = "gone"
    if now != shard.version:
        raise ValueError(
            f"{shard.source} changed while the audit ran: planned version {shard.version}, now {now}; start a new audit"
        )
    with fs.open(path) as f:
        file, start = pq.ParquetFile(f), 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            low, high = max(shard.first_row, start), min(shard.first_row + shard.rows, start + count)
            if low < high:
                table = file.read_row_group(group, columns=list(columns)).slice(low - start, high - low)
                yield from enumerate(_unpacked(table), low)
            start += count


def _unpacked(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=256):
        yield from batch.to_pylist()


def label_values(shard: Shard, data: DataConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """(sample id, its labels as text) of every row of a shard, without reading images."""
    columns = [*([data.id_column] if data.id_column else []), *data.label_columns]
    for row, values in rows(shard, columns):
        yield sample_id(row, values, shard, data), {c: str(values[c]) for c in data.label_columns}


def sample_id(row: int, values: dict[str, Any], shard: Shard, data: DataConfig) -> str:
    """The id column's value, or one made from the source's name below `data.uri` and the row."""
    if data.id_column:
        return str(values[data.id_column])
    fs, path = fsspec.core.url_to_fs(data.uri)
    return f"{shard.source.removeprefix(fs.unstrip_protocol(path)).strip('/') or 'rows'}:{row}"
