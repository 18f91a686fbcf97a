"""What a part holds: the features of one shard, in memory. Letters: n rows, k projected dimensions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Num


class Damaged(ValueError):
    """Bytes that are no part: truncated, altered, or not written by this project."""


@dataclass(frozen=True)
class Reject:
    """A sample without a feature, and why. `row` is its row in `source`."""

    sample_id: str
    source: str
    row: int
    reason: str
    message: str


@dataclass(frozen=True)
class Part:
    """The features of one shard. `ids` name the rows of `weight` (w_i) and `phi`; rejected samples have no row."""

    fingerprint: str
    shard: str
    ids: tuple[str, ...]
    weight: Float32[np.ndarray, " n"]
    phi: Float32[np.ndarray, "n k"]
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class Footer:
    """What a part says of itself, without its rows. `sum_squares` is Σ‖φ‖² over the rows."""

    fingerprint: str
    shard: str
    rows: int
    sum_squares: float
    rejects: tuple[Reject, ...]
    dtype: str
    k: int
    encoding: str
    byte_order: str


@dataclass(frozen=True)
class Block:
    """One row group. `unit` is a view of what Arrow decoded, float16, float32 or int8; φ = unit * scale.

    `torch.from_dlpack(unit)` shares its memory as well.
    """

    ids: list[str]
    weight: Float32[np.ndarray, " n"]
    scale: Float32[np.ndarray, " n"]
    unit: Num[np.ndarray, "n k"]

    def phi(self) -> Float32[np.ndarray, "n k"]:
        """The features: unit * scale, in float32."""
        return self.unit.astype(np.float32) * self.scale[:, None]

    def norms(self) -> Float64[np.ndarray, " n"]:
        """‖φ‖₂ per row: the scale itself, but of an int8 row ‖unit‖ scale, from a sum of whole numbers."""
        scale = self.scale.astype(np.float64)
        if self.unit.dtype != np.int8:
            return scale
        return scale * np.sqrt(np.einsum("nk,nk->n", self.unit, self.unit, dtype=np.int64))

    def rounding(self) -> float:
        """The largest relative error of a row that int8 explains, max √k scale / 2‖φ‖; 0 of a float row."""
        if self.unit.dtype != np.int8:
            return 0.0
        half = np.sqrt(self.unit.shape[1]) * self.scale / 2
        return float(np.max(half / np.where(self.scale > 0, self.norms(), 1.0), initial=0.0))
