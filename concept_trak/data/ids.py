"""Whether the ids that a data set brings along name one sample each."""

import hashlib
from collections.abc import Iterator, Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak.config import DataConfig
from concept_trak.data.shard import Source


def check_ids(found: Sequence[Source], data: DataConfig) -> None:
    """That ids are unique over the whole data set, in 8 bytes of memory a row; ids made from source and row always are.

    Raises:
        ValueError: naming some of the ids that occur twice, or a source where they are missing.
    """
    if not data.id_column:
        return
    hashes = [
        np.concatenate([_hashed(batch, source) for batch in _ids(source, data)] or [np.empty(0, np.uint64)])
        for source in found
    ]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice = set(values[counts > 1].tolist())
    if twice:
        examples = sorted(
            {str(v) for s in found for b in _ids(s, data) for v in b.to_pylist() if _hash(str(v)) in twice}
        )[:5]
        raise ValueError(
            f"data.id_column={data.id_column!r} is not unique: {', '.join(examples)} occur more than once; name a "
            "column of unique ids, or leave data.id_column empty to have them made"
        )


def _ids(source: Source, data: DataConfig) -> Iterator[pa.Array]:
    with fsspec.open(source.uri) as f:
        for batch in pq.ParquetFile(f).iter_batches(columns=[data.id_column]):
            yield batch.column(0)


def _hashed(ids: pa.Array, source: Source) -> np.ndarray:
    if ids.null_count:
        raise ValueError(
            f"{source.uri} has rows without an id; fill them, or leave data.id_column empty to have ids made"
        )
    return np.fromiter((_hash(str(v)) for v in ids.to_pylist()), np.uint64, len(ids))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
