"""K = Σ φ φᵀ over some rows, as one safetensors file; its metadata hold the rows' count, the trace and a checksum."""

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load, save

from concept_trak import UserError
from concept_trak.store.checked_safetensors import checked_metadata, with_checksum
from concept_trak.store.consistency import ExpectedGram
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store


def write_gram(store: Store, features: FeatureSet, node: str, k_matrix: Float32[np.ndarray, "k k"], count: int) -> None:
    """Put the partial sum over a group of shards, if it is absent. An existing one is kept.

    Raises:
        UserError: the existing one has another width or another number of rows, or is damaged.
    """
    name = features.gram(node)
    if store.create(name, encode_gram(k_matrix, count)):
        return
    standing, rows = read_gram(store, features, node)
    if (standing.shape, rows) != (k_matrix.shape, count):
        raise UserError(
            f"{store.uri}/{name} sums {rows} rows of width {len(standing)}; this attempt summed {count} rows of width"
            f" {len(k_matrix)}. Expected the same shards in one group: remove that file, it is computed again."
        )


def read_gram(
    store: Store, features: FeatureSet, node: str, expected: ExpectedGram | None = None
) -> tuple[Float32[np.ndarray, "k k"], int]:
    """K over a group of shards, and its number of rows.

    Raises:
        FileNotFoundError: it was not summed yet.
        Damaged: the file is damaged, or is not the sum that is `expected`; the message names it.
    """
    name = features.gram(node)
    data = store.read(name)
    try:
        k_matrix, count = decode_gram(data)
        if expected is not None:
            expected.require(k_matrix, count)
    except Damaged as error:
        remedy = "Run `python -m jobs.verify repair=true`, or remove the file: it is computed again."
        raise Damaged(f"{store.uri}/{name}: {error}. {remedy}") from error
    return k_matrix, count


def encode_gram(k_matrix: Float32[np.ndarray, "k k"], count: int) -> bytes:
    """The bytes of K; equal K give equal bytes. The metadata have the number of rows and the trace (float64)."""
    assert np.isfinite(k_matrix).all(), "a non-finite Gram: a non-finite feature slipped past the rejects"
    k_matrix = np.ascontiguousarray(k_matrix)
    metadata = {"count": str(count), "trace": repr(float(np.trace(k_matrix, dtype=np.float64)))}
    return with_checksum(save({"K": k_matrix}, metadata=metadata))


def decode_gram(data: bytes) -> tuple[Float32[np.ndarray, "k k"], int]:
    """K and its number of rows. Raises Damaged."""
    metadata = checked_metadata(data)
    try:
        k_matrix, count = load(data)["K"], int(metadata["count"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"no Gram of this project: {type(error).__name__}: {error}") from error
    if k_matrix.dtype != np.float32 or k_matrix.shape != (k_matrix.shape[:1] * 2):
        raise Damaged(f"no Gram of this project: K is {k_matrix.dtype} of shape {k_matrix.shape}")
    if not np.isfinite(k_matrix).all():
        raise Damaged("K has a number that is not finite")
    return k_matrix, count
