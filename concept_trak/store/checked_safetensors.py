"""Safetensors files that carry their own checksum: Grams, kept inversions, measurements of components.

The metadata entry `sha256` is the digest of everything else in the file: the header without that entry, as JSON with
sorted keys, then the tensors' bytes. Any reader of safetensors opens the file, with or without this module, which
handles bytes only and imports no array library's `save` or `load`.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from concept_trak.store.part import Damaged


def with_checksum(data: bytes) -> bytes:
    """The same safetensors file with its header's keys in order and its checksum in the metadata.

    Equal tensors and metadata give equal bytes; `safetensors` itself writes metadata in an order that varies by
    process.
    """
    head, tensors = _cut(data)
    metadata = dict(head.get("__metadata__", {}))
    metadata["sha256"] = _digest(_json({**head, "__metadata__": metadata}), tensors)
    text = _json({**head, "__metadata__": metadata})
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + bytes(tensors)


def checked_metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, after its checksum was compared.

    Raises:
        Damaged: the file is not a safetensors file, has no checksum, or was altered.
    """
    head, tensors = _cut(data)
    try:
        metadata = head.get("__metadata__", {})
        stated = metadata["sha256"] if "sha256" in metadata else _digest_tensor(head, tensors)
        intact = stated in _digests(head, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"no checked safetensors file: {type(error).__name__}: {error}") from error
    if not intact:
        raise Damaged("its bytes do not have the sha256 that the file states")
    return metadata


def safetensors_header(data: bytes) -> dict[str, Any]:
    """The JSON header of any safetensors file: by tensor name dtype, shape and offsets, and `__metadata__`.

    Raises:
        Damaged: the bytes have no such header.
    """
    return _cut(data)[0]


def _cut(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header, and the tensors' bytes."""
    size = int.from_bytes(data[:8], "little")
    try:
        head = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise Damaged(f"no safetensors file, or a damaged one: {type(error).__name__}") from error
    if len(data) < 8 + size or not isinstance(head, dict):
        raise Damaged("no safetensors file, or a truncated one")
    return head, memoryview(data)[8 + size :]


def _digests(head: dict[str, Any], tensors: memoryview) -> Iterator[str]:
    """The digest of the present format, then those of the three older formats."""
    metadata = {key: value for key, value in head.get("__metadata__", {}).items() if key != "sha256"}
    yield _digest(_json({**head, "__metadata__": metadata}), tensors)
    yield _digest(b"", tensors)  # Grams: the matrix alone
    bare = {name: entry for name, entry in head.items() if name != "__metadata__"}
    text = json.dumps(bare, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    yield _digest(len(text).to_bytes(8, "little") + text, tensors)  # measurements: the file without metadata
    if "sha256" in bare:  # kept inversions: every tensor but the digest, which is one itself
        first, last = bare["x_t"]["data_offsets"]
        yield _digest(b"", tensors[first:last])


def _digest_tensor(head: dict[str, Any], tensors: memoryview) -> str:
    """The digest of the older format of kept inversions, which had it as a tensor."""
    first, last = head["sha256"]["data_offsets"]
    return bytes(tensors[first:last]).hex()


def _digest(text: bytes, tensors: memoryview) -> str:
    digest = hashlib.sha256(text)
    digest.update(tensors)
    return digest.hexdigest()


def _json(head: dict[str, Any]) -> bytes:
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
