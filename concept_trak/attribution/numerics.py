"""Keyed randomness, and the precision of sums.

Every random draw is keyed by its purpose: the seed, the sample id, a word. It does not depend on rank, worker, batch or
order. Random matrices are built from integer hashes of the positions of their entries, so an entry is the same in every
process, on every device and for any size of the matrix.

Networks may run in bfloat16 (8 significant bits) or float16 (11 bits, and no number below 6e-8). Sums, quotients and
states are at least float32: an x_t after 45 updates, an x_0 divided by a small alpha and a v of size 1 / D would not
survive less.
"""

import hashlib
import json
import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


def key(*parts: str | int | float) -> int:
    """A 63-bit integer that depends on the parts alone: `key(seed, sample_id, "noise", t)`."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def normal(shape: tuple[int, ...], *parts: str | int | float) -> Float[Tensor, "..."]:
    """Standard normal noise keyed by `parts`: float32, drawn on the CPU so that every device gets the same numbers."""
    generator = torch.Generator().manual_seed(key(*parts))
    return torch.randn(shape, generator=generator)


def uniform(shape: tuple[int, ...], seed: int) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1) from a seed such as `key` makes: float32, drawn on the CPU."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def choice(count: int, *parts: str | int | float) -> int:
    """An integer in 0 ... count - 1 keyed by `parts`, uniform to within 2^-63 * count."""
    return math.floor(key(*parts) / 2**63 * count) if count > 0 else 0


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself in float32 or float64; lower precisions are cast to float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.promote_types(x.dtype, torch.float32))


def norm_of_all(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over all numbers of these tensors, summed in float64 one tensor at a time."""
    return torch.stack([x.double().square().sum() for x in tensors]).sum().sqrt().item()


def signs(
    seed: int, name: str, rows: range, dim: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "rows k"]:
    """Rows `rows` and the first `dim` columns of an endless matrix of +1 and -1 named (seed, name)."""
    columns = mix(torch.arange(-(-dim // 32), device=device) + key(seed, name, "columns") % 2**40)
    row_hashes = mix(torch.arange(rows.start, rows.stop, device=device) + key(seed, name, "rows") % 2**40)
    shifts = torch.tensor((8, 16, 24, 32), device=device)
    octets = mix(row_hashes[:, None] ^ columns[None, :])[:, :, None] >> shifts & 255
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return functional.embedding(octets, (2 * bits - 1).to(dtype)).reshape(len(rows), -1)[:, :dim]


def hashes(seed: int, name: str, count: int, device: torch.device) -> Int64[Tensor, " count"]:
    """63-bit hashes of the coordinates 0 ... count - 1 of the parameter `name`."""
    return mix(torch.arange(count, device=device) + key(seed, name, "hash") % 2**40)


def mix(x: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """splitmix64's finaliser (Steele et al. 2014) on int64, without the sign bit of the result.

    Products of int64 wrap around alike on every device.
    """
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return (x ^ (x >> 31 & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF
