"""Integer hashes that name every entry of a random matrix: the same in every process, on every device, for any size."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from concept_trak.noise import key


def signs(seed: int, name: str, rows: range, dim: int, like: Tensor) -> Float[Tensor, "rows k"]:
    """Rows `rows` of a matrix of signs without end, of which any entry is the same however many are asked for."""
    words, device = -(-dim // 32), like.device
    columns = mix(torch.arange(words, device=device) + key(seed, name, "columns") % 2**40)
    here = mix(torch.arange(rows.start, rows.stop, device=device) + key(seed, name, "rows") % 2**40)
    bits = mix(here[:, None] ^ columns[None, :])
    shifts = torch.arange(8, 40, device=device)
    return ((bits[:, :, None] >> shifts & 1) * 2 - 1).reshape(len(rows), -1)[:, :dim].to(like)


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
