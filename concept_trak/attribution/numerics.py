"""Randomness that belongs to samples: every draw is keyed by what it is for, never by rank, worker, batch or order.

Narrow numbers stay in the network: what is added up, divided, or carried from step to step is at least float32.

bfloat16 keeps 8 bits of a number and float16 keeps 11 but ends at 6e-8. A network bears that, since it was trained
among such errors; x_t carried over 45 updates, x_0 divided by a small alpha, and a v of size 1 / D do not.

Integer hashes that name every entry of a random matrix: the same in every process, on every device, for any size.
"""

import hashlib
import json
import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


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


def at_least_float32(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.promote_types(x.dtype, torch.float32))


_FEW = 2**15  # signs


def signs(seed: int, name: str, rows: range, dim: int, like: Tensor) -> Float[Tensor, "rows k"]:
    """Rows `rows` of a matrix of signs without end, of which any entry is the same however many are asked for."""
    if len(rows) * dim < _FEW:
        return _few(seed, name, rows, dim, like.dtype, like.device)
    return _signs(seed, name, rows, dim, like.dtype, like.device)


def _signs(
    seed: int, name: str, rows: range, dim: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "rows k"]:
    columns = mix(torch.arange(-(-dim // 32), device=device) + key(seed, name, "columns") % 2**40)
    here = mix(torch.arange(rows.start, rows.stop, device=device) + key(seed, name, "rows") % 2**40)
    octets = mix(here[:, None] ^ columns[None, :])[:, :, None] >> torch.tensor((8, 16, 24, 32), device=device) & 255
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return functional.embedding(octets, (2 * bits - 1).to(dtype)).reshape(len(rows), -1)[:, :dim]


_few = lru_cache(maxsize=4096)(_signs)
"""Small matrices are kept from batch to batch (half a gigabyte at most): the calls that draw one take longer than what
it is multiplied with."""


def hashes(seed: int, name: str, count: int, device: torch.device) -> Int64[Tensor, " count"]:
    """63-bit hashes of coordinates 0 ... count - 1 of the parameter `name`."""
    return mix(torch.arange(count, device=device) + key(seed, name, "hash") % 2**40)


def mix(x: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """splitmix64's finaliser (Steele et al. 2014) on int64, whose products wrap alike everywhere.

    The sign bit of the result is dropped.
    """
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return (x ^ (x >> 31 & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
