"""Lookup of samples in parts: the shard of a sample, and its feature. Of other parts only the ids are read."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak.store.codec import decode_blocks
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Damaged
from concept_trak.store.records import ADOPT_TOLERANCE, READERS
from concept_trak.store.store import Store

StoredFeature = tuple[np.ndarray, float]  # phi in float64, and the largest relative error of its storage format


def shards_holding(
    store: Store, features: FeatureSet, shards: Sequence[str], sample_ids: Collection[str]
) -> dict[str, str]:
    """The shard of each of these samples that is in one of these shards.

    Raises:
        FileNotFoundError: a part is gone.
        Damaged: a part is not a Parquet file.
    """
    with ThreadPoolExecutor(READERS) as readers:
        listed = readers.map(lambda shard: _ids(store, features.part(shard)), shards)
        return {i: shard for shard, ids in zip(shards, listed, strict=True) for i in set(sample_ids).intersection(ids)}


def read_features(store: Store, features: FeatureSet, places: Mapping[str, str]) -> dict[str, StoredFeature]:
    """The feature of each sample, by the shard that holds it."""
    stored: dict[str, StoredFeature] = {}
    for shard in dict.fromkeys(places.values()):
        for block in decode_blocks(store.read(features.part(shard))):
            for sample, phi in zip(block.ids, block.phi(), strict=True):
                if places.get(sample) == shard:
                    stored[sample] = (phi.astype(np.float64), block.rounding())
    return stored


def agree(a: StoredFeature, b: StoredFeature) -> bool:
    """Whether two features differ by at most rounding and the order of sums."""
    size = max(np.linalg.norm(a[0]), np.linalg.norm(b[0]))
    return bool(np.linalg.norm(a[0] - b[0]) <= (ADOPT_TOLERANCE + a[1] + b[1]) * size)


def _ids(store: Store, name: str) -> list[str]:
    try:
        file = pq.ParquetFile(store.open(name), page_checksum_verification=True)
        table = file.read(columns=["sample_id"], use_threads=False)  # as `tables.read_parquet`
    except pa.ArrowException as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}") from error
    return table["sample_id"].to_pylist()


def shard_finder(plan: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    """Returns what finds the shard of a plan that holds a row of a source: `source` and `row` of a mapping."""
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for shard in plan:
        by_source.setdefault(shard["source"], []).append(shard)

    def shard_of(row: Mapping[str, Any]) -> str:
        for shard in by_source.get(row["source"], ()):
            if 0 <= row["row"] - shard["first_row"] < shard["rows"]:
                return shard["shard"]
        raise AssertionError(f"{row['source']} row {row['row']} is in the top and in no shard of the plan")

    return shard_of
