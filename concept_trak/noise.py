"""Randomness that belongs to samples: every draw is keyed by what it is for, never by rank, worker, batch or order."""

import hashlib
import json
import math

import torch
from jaxtyping import Float
from torch import Tensor


def key(*parts: str | int | float) -> int:
    """A 63-bit integer named by its parts, the same on every machine: `key(seed, sample_id, "noise", t)`."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def normal(shape: tuple[int, ...], *parts: str | int | float) -> Float[Tensor, "..."]:
    """Standard normal noise of `shape`, float32 on the CPU so that every device sees the same numbers."""
    generator = torch.Generator().manual_seed(key(*parts))
    return torch.randn(shape, generator=generator)


def choice(count: int, *parts: str | int | float) -> int:
    """One of `0 ... count - 1`, uniformly to within 2^-63 * count."""
    return math.floor(key(*parts) / 2**63 * count) if count > 0 else 0
