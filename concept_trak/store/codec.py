"""A part as a Parquet file with the features of one shard, and back without copying.

Letters: n rows of the part, k projected dimensions. The column `feature` is unit = phi / scale in the dtype of the
features (see `part.py`); phi = unit * scale in float32. All other columns are plain, so DuckDB, Polars, pandas and
Spark read the file without this module.
"""

import dataclasses
import json
import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Num

from concept_trak import UserError
from concept_trak.store.part import (
    DTYPES,
    Block,
    Damaged,
    FileBytes,
    Footer,
    Part,
    Reject,
    little_endian,
    scale_and_unit,
)
from concept_trak.store.store import Store
from concept_trak.store.tables import parquet_tail

MAX_PART_BYTES = 90_000_000  # one PUT, one retry, and twice this in memory while encoding
ONE_PAGE = (1 << 31) - 1


def encode_part(part: Part, dtype: str = "float16", encoding: str = "binary", group_bytes: int = 32 << 20) -> bytes:
    """The bytes of a part: same part, same bytes.

    `binary` stores the feature as fixed_size_binary(k * itemsize) of `dtype`; `list` as a list of float32 (whatever
    the `dtype`), one page per row group, for SQL arrays. Uncompressed: projected gradients do not compress.

    Raises:
        UserError: an unknown dtype or encoding, or more than MAX_PART_BYTES.
    """
    if dtype not in DTYPES or encoding not in ("binary", "list"):
        raise UserError(f"features as dtype={dtype}, encoding={encoding}: expected {'|'.join(DTYPES)} and binary|list.")
    dtype = "float32" if encoding == "list" else dtype
    assert len(part.ids) == len(part.weight) == len(part.phi), "ids, weight and phi name different numbers of rows"
    assert np.isfinite(part.weight).all(), "a non-finite weight in a part: it is a reject, not a row"
    scale, unit = scale_and_unit(part.phi, dtype)
    table = _table(part, Block(list(part.ids), part.weight, scale, unit), encoding)
    data = _parquet(table, max(1, group_bytes // (unit.shape[1] * unit.itemsize)), encoding)
    if len(data) > MAX_PART_BYTES:
        raise UserError(
            f"shard {part.shard} takes {len(data) / 1e6:.0f} MB with {len(part.ids)} rows of k={part.phi.shape[1]}"
            f" {dtype}; at most {MAX_PART_BYTES // 1_000_000} MB fit one part: lower shard_rows (or projector.dim)."
        )
    return data


def decode_footer(data: FileBytes) -> Footer:
    """The footer of a part. `data` is the file, or only its tail. Raises Damaged."""
    try:
        file = pq.read_metadata(pa.BufferReader(data))
        footer = {key.decode(): value.decode() for key, value in (file.metadata or {}).items()}
        result = Footer(
            fingerprint=footer["concept_trak.fingerprint"],
            shard=footer["concept_trak.shard"],
            rows=int(footer["concept_trak.rows"]),
            sum_squares=float(footer["concept_trak.sum_squares"]),
            rejects=tuple(Reject(**reject) for reject in json.loads(footer["concept_trak.rejects"])),
            dtype=footer["feature.dtype"],
            k=int(footer["feature.k"]),
            encoding=footer["feature.encoding"],
            byte_order=footer["feature.byte_order"],
        )
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise Damaged(f"no part of this project, or a damaged one: {type(error).__name__}: {error}") from error
    if result.rows != file.num_rows:
        raise Damaged(f"shard {result.shard} says {result.rows} rows in its footer and holds {file.num_rows}")
    return result


def read_footer(store: Store, name: str) -> Footer:
    """The footer of a part on storage, read without the rows. Raises FileNotFoundError and Damaged."""
    return decode_footer(parquet_tail(store.open(name)))


def decode_blocks(data: FileBytes, checked: bool = False) -> Iterator[Block]:
    """The rows of a part, one row group at a time. Raises Damaged.

    Every page is verified by its checksum, unless `checked`: the caller has verified the sha256 of the whole file.
    """
    footer = decode_footer(data)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=not checked)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, use_threads=False)  # as `tables.read_parquet`
            if table.num_rows:
                yield _block(table, footer)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"shard {footer.shard} is damaged: {error}") from error


def feature_matrices(column: pa.ChunkedArray, k: int, dtype: str) -> list[Num[np.ndarray, "_ k"]]:
    """The column `feature` of any Arrow table as matrices, one per chunk, sharing Arrow's memory (no copy).

    The schema's metadata have k and the dtype as `feature.k` and `feature.dtype`. Multiply row i by scale[i], in
    float32, to get phi.
    """
    return [_matrix(chunk, k, little_endian(dtype)) for chunk in column.chunks]


def _table(part: Part, rows: Block, encoding: str) -> pa.Table:
    """The four columns, none nullable, and the footer as metadata."""
    unit, (n, k) = rows.unit, rows.unit.shape
    if encoding == "list":
        item = pa.field("element", pa.float32(), nullable=False)
        feature = pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), type=pa.list_(item, k))
    else:
        feature = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(k * unit.itemsize), n, [None, pa.py_buffer(np.ascontiguousarray(unit))]
        )
    columns = {
        "sample_id": pa.array(rows.ids, pa.string()),
        "weight": pa.array(rows.weight),
        "scale": pa.array(rows.scale),
        "feature": feature,
    }
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    metadata = {
        "feature.dtype": unit.dtype.name,
        "feature.k": str(k),
        "feature.byte_order": "little",
        "feature.encoding": encoding,
        "concept_trak.fingerprint": part.fingerprint,
        "concept_trak.shard": part.shard,
        "concept_trak.rows": str(n),
        "concept_trak.sum_squares": repr(sum_of_squares(rows.norms())),
        "concept_trak.rejects": json.dumps([dataclasses.asdict(reject) for reject in part.rejects]),
    }
    return pa.table(list(columns.values()), schema=pa.schema(fields, metadata=metadata))


def sum_of_squares(norm: Float[np.ndarray, " n"]) -> float:
    """Σ‖φ‖² in float64, correctly rounded, so it does not depend on how the rows are cut."""
    return math.fsum(np.square(norm, dtype=np.float64).tolist())


def _parquet(table: pa.Table, group_rows: int, encoding: str) -> bytes:
    page = ONE_PAGE if encoding == "list" else None  # None: Arrow's own limits
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=group_rows,
        compression="none",
        use_dictionary=False,
        write_statistics=["sample_id"],  # pyright: ignore[reportArgumentType]  (a list of columns is documented)
        write_page_checksum=True,
        data_page_size=page,
        max_rows_per_page=page,
    )
    return sink.getvalue().to_pybytes()


def _block(table: pa.Table, footer: Footer) -> Block:
    (unit,) = feature_matrices(table["feature"], footer.k, footer.dtype)  # Arrow reads one row group into one chunk
    weight, scale = (table[name].to_numpy() for name in ("weight", "scale"))
    return Block(table["sample_id"].to_pylist(), weight, scale, unit)


def _matrix(chunk: pa.Array, k: int, dtype: np.dtype) -> np.ndarray:
    if pa.types.is_fixed_size_list(chunk.type):
        return chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, k)
    width = k * dtype.itemsize
    if chunk.type != pa.binary(width) or chunk.null_count:
        raise UserError(
            f"the column holds {chunk.type} with {chunk.null_count} nulls; k={k} {dtype.name} needs"
            f" fixed_size_binary[{width}] without nulls: take k and dtype from the schema's metadata (feature.k,"
            " feature.dtype)."
        )
    rows = np.frombuffer(chunk.buffers()[1], dtype, count=len(chunk) * k, offset=chunk.offset * width)
    return rows.reshape(len(chunk), k)
