"""Whether the ids that a data set brings along name one sample each."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from concept_trak.config import DataConfig
from concept_trak.data.format import rows, sample_id
from concept_trak.data.shard import Source, whole


def check_ids(found: Sequence[Source], data: DataConfig) -> None:
    """That ids are unique over the whole data set, in 8 bytes of memory a row; ids made from source and row always are.

    Raises:
        ValueError: naming some of the ids that occur twice, or a source where they are missing.
    """
    if not data.id_column:
        return
    hashes = [np.fromiter((_hash(i) for i in _ids(source, data)), np.uint64) for source in found]
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    twice = set(values[counts > 1].tolist())
    if twice:
        examples = sorted({i for source in found for i in _ids(source, data) if _hash(i) in twice})[:5]
        raise ValueError(
            f"data.id_column={data.id_column!r} is not unique: {', '.join(examples)} occur more than once; name a "
            "column of unique ids, or leave data.id_column empty to have them made"
        )


def _ids(source: Source, data: DataConfig) -> Iterator[str]:
    for row in rows(whole(source), data, [data.id_column]):
        if row.values[data.id_column] is None and row.flaw is None:
            raise ValueError(
                f"{source.uri} has rows without an id; fill them, or leave data.id_column empty to have ids made"
            )
        yield sample_id(row, data)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
