"""Chosen rows of parts: which part holds a sample, and its feature. Of other parts only the column of ids is read."""

import io
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak.store.codec import decode_blocks
from concept_trak.store.part import Damaged
from concept_trak.store.records import ADOPT_TOLERANCE, READERS, part_name
from concept_trak.store.store import Store

StoredFeature = tuple[np.ndarray, float]  # phi in float64, and the relative error that the way it is stored explains


def shards_holding(store: Store, fp: str, shards: Sequence[str], wanted: Collection[str]) -> dict[str, str]:
    """The shard of each wanted sample that is in one of these.

    Raises:
        FileNotFoundError: a part is gone.
        Damaged: a part is no Parquet file.
    """
    with ThreadPoolExecutor(READERS) as readers:
        listed = readers.map(lambda shard: _ids(store, part_name(fp, shard)), shards)
        return {i: shard for shard, ids in zip(shards, listed, strict=True) for i in set(wanted).intersection(ids)}


def read_features(store: Store, fp: str, places: Mapping[str, str]) -> dict[str, StoredFeature]:
    """The feature of each sample, by the shard that holds it."""
    found: dict[str, StoredFeature] = {}
    for shard in dict.fromkeys(places.values()):
        for block in decode_blocks(store.read(part_name(fp, shard))):
            for sample, phi in zip(block.ids, block.phi(), strict=True):
                if places.get(sample) == shard:
                    found[sample] = (phi.astype(np.float64), block.rounding())
    return found


def agree(a: StoredFeature, b: StoredFeature) -> bool:
    """Whether two features differ by no more than rounding and sums in another order explain."""
    size = max(np.linalg.norm(a[0]), np.linalg.norm(b[0]))
    return bool(np.linalg.norm(a[0] - b[0]) <= (ADOPT_TOLERANCE + a[1] + b[1]) * size)


class _Ranged(io.RawIOBase):
    """A file of a store that reads only the ranges it is asked for."""

    def __init__(self, store: Store, name: str) -> None:
        size = store.size(name)
        if size is None:
            raise FileNotFoundError(f"{store.uri}/{name} does not exist")
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        data = self._store.read(self._name, self._at, end) if end > self._at else b""
        self._at += len(data)
        return data


def _ids(store: Store, name: str) -> list[str]:
    try:
        table = pq.read_table(_Ranged(store, name), columns=["sample_id"], page_checksum_verification=True)
    except pa.ArrowException as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}") from error
    return table["sample_id"].to_pylist()
