"""What a part holds: the features of one shard, in memory. Letters: n rows, k projected dimensions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32


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
    """What a part says of itself, without its rows. `sum_squares` is Σ scale² = Σ‖φ‖² over the rows."""

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
    """One row group. `unit` is a read-only view into the file's bytes as Arrow decoded them, float16 or float32."""

    ids: list[str]
    weight: Float32[np.ndarray, " n"]
    scale: Float32[np.ndarray, " n"]
    unit: Float[np.ndarray, "n k"]

    def phi(self) -> Float32[np.ndarray, "n k"]:
        """The features: unit * scale, in float32."""
        return self.unit.astype(np.float32) * self.scale[:, None]
