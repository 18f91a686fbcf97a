"""Plain tables for people: rows in, Parquet columns out, with types said in words so that nobody else needs Arrow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KINDS: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "vector": pa.list_(pa.field("element", pa.float32(), nullable=False)),
}


def from_rows(kinds: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table with the columns of `kinds` (name to a word of `KINDS`), also when there are no rows."""
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
    return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
