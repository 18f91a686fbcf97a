"""Files for a test that ids are unique, without all ids in one process: sorted digests of 8 bytes, in buckets."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

CUTS = 256
"""Buckets of a file, by the value of the digest. A comparison that needs fewer buckets joins neighbours."""
HEADER_BYTES = 8 * (CUTS + 1)


def id_digests(ids: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """The digest of each id, in the order of the ids."""
    return np.fromiter((_digest(i) for i in ids), np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_ids(digests: UInt64[np.ndarray, " n"]) -> bytes:
    """The bytes of a file of digests: the first index of each bucket, the number of digests, and the sorted digests."""
    ordered = np.sort(digests)
    edges = np.arange(CUTS, dtype=np.uint64) << np.uint64(56)
    starts = np.append(np.searchsorted(ordered, edges), len(ordered)).astype("<u8")
    return starts.tobytes() + ordered.astype("<u8").tobytes()


def bucket_bytes(header: bytes, bucket: int, buckets: int) -> tuple[int, int]:
    """The bytes of a file that hold the digests of a bucket: (first byte, one more than the last byte).

    Args:
        header: the first `HEADER_BYTES` of the file.
        bucket: in 0 ... `buckets` - 1.
        buckets: the number of buckets; it divides `CUTS`.
    """
    starts, width = np.frombuffer(header, "<u8"), CUTS // buckets
    first, last = starts[bucket * width], starts[(bucket + 1) * width]
    return HEADER_BYTES + 8 * int(first), HEADER_BYTES + 8 * int(last)


def repeated(digests: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " m"]:
    """The digests that occur more than once."""
    ordered = np.sort(digests)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
