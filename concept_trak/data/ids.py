"""Whether ids are unique, without all of them in one place: digests of 8 bytes, sorted, cut into buckets by value."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

CUTS = 256
"""Buckets that a file is cut into: those that are compared together are some of these."""
HEADER_BYTES = 8 * (CUTS + 1)


def id_digests(ids: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """A digest of each id, in their order."""
    return np.fromiter((_digest(i) for i in ids), np.uint64)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_ids(digests: UInt64[np.ndarray, " n"]) -> bytes:
    """A file of digests: where each bucket begins and the last one ends, then the digests, sorted."""
    ordered = np.sort(digests)
    edges = np.arange(CUTS, dtype=np.uint64) << np.uint64(56)
    starts = np.append(np.searchsorted(ordered, edges), len(ordered)).astype("<u8")
    return starts.tobytes() + ordered.astype("<u8").tobytes()


def bucket_bytes(header: bytes, bucket: int, buckets: int) -> tuple[int, int]:
    """Where the digests of a bucket lie in a file: first byte, and the byte behind the last.

    Args:
        header: the first `HEADER_BYTES` of the file.
        bucket, buckets: which, of how many; `buckets` divides `CUTS`.
    """
    starts, width = np.frombuffer(header, "<u8"), CUTS // buckets
    first, last = starts[bucket * width], starts[(bucket + 1) * width]
    return HEADER_BYTES + 8 * int(first), HEADER_BYTES + 8 * int(last)


def repeated(digests: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " m"]:
    """The digests that occur more than once."""
    ordered = np.sort(digests)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
