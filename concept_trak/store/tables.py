"""Tables of rows as Parquet. Column types are words (`KINDS`), so that other modules need no Arrow."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from concept_trak.store.store import Store

compute: Any = pyarrow.compute
"""Arrow's functions, which are made when it is imported, so that no type checker knows them."""
TAIL_BYTES = 64 << 10
"""Bytes at the end of a Parquet file that contain nearly every footer, so that one request reads it."""
KINDS: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "vector": pa.list_(pa.field("element", pa.float32(), nullable=False)),
}


@runtime_checkable
class SeekableFile(Protocol):
    """A file opened for reading, on this machine or on storage."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def read(self, size: int = ..., /) -> bytes: ...


def from_rows(kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table with the columns of `kinds` (name to a word of `KINDS`), also without rows."""
    return pa.Table.from_pylist(list(rows), pa.schema([(name, KINDS[kind]) for name, kind in kinds.items()]))


def from_columns(kinds: Mapping[str, str], columns: Mapping[str, Sequence[Any] | np.ndarray]) -> pa.Table:
    """The same from whole columns."""
    return pa.table({name: pa.array(columns[name], KINDS[kind]) for name, kind in kinds.items()})


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file, with page checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def read_parquet(data: bytes) -> pa.Table:
    """The table that `to_parquet` wrote, page checksums verified."""
    return _read(pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True))


def read_columns(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of a table in the store, and of the others nothing; page checksums verified."""
    with store.open(name) as file:
        return _read(pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True), columns)


def _read(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group at a time: Arrow cannot read lists of dictionary values over several, each with its own values."""
    # Arrow's threads would keep the bytes; when Python ends before they do, the process aborts.
    groups = [file.read_row_group(i, columns, use_threads=False) for i in range(file.num_row_groups)]
    return pa.concat_tables(groups) if groups else file.read(columns, use_threads=False)


def parquet_tail(file: SeekableFile) -> bytes:
    """The end of a Parquet file with its whole footer, which `pq.read_metadata` reads like the file itself.

    Arrow raises OSError for a damaged footer too. This function reads only the bytes, so an error here means that
    storage failed, and an error when they are parsed means that the file is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    length = int.from_bytes(tail[-8:-4], "little") + 8  # Parquet ends with the footer, its length, and "PAR1"
    if tail.endswith(b"PAR1") and len(tail) < length <= size:
        file.seek(size - length)
        tail = file.read()
    return tail


def read_rows_of(store: Store, name: str) -> list[dict[str, Any]]:
    """The rows of a table in the store."""
    return read_parquet(store.read(name)).to_pylist()
