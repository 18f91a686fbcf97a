"""A part in memory: the features of one shard. Letters: n rows, k projected dimensions.

A stored row has few bits for each entry (`unit`) and one float32 (`scale`), with φ ≈ scale unit.

float16 and float32: unit = u = φ/‖φ‖ and scale = ‖φ‖, so float16 keeps its relative precision whatever the size of a
gradient. int8: unit = round(127 u / max|u|) and scale = ‖φ‖ max|u| / 127 = max|φ| / 127. The step is the row's largest
entry / 127, so the error of an entry is at most half a step, and that of a row at most √k scale / 2.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Float64, Int8, Num

from concept_trak import UserError

FileBytes = bytes | pa.Buffer
"""The bytes of a file, as `Store.read` or `Store.read_buffer` returns them."""


class Damaged(UserError):
    """A file is truncated, altered, or was not written by this project. `jobs.verify repair=true` repairs it."""


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
    """The features of one shard. `ids` has the ids of the rows of `weight` (w_i) and `phi`; rejects have no row."""

    fingerprint: str
    shard: str
    ids: tuple[str, ...]
    weight: Float32[np.ndarray, " n"]
    phi: Float32[np.ndarray, "n k"]
    rejects: tuple[Reject, ...]


@dataclass(frozen=True)
class Footer:
    """The metadata of a part. `sum_squares` is Σ‖φ‖² over the rows."""

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
    """One row group. `unit` is a view of Arrow's memory, float16, float32 or int8; φ = unit * scale.

    `torch.from_dlpack(unit)` shares its memory as well.
    """

    ids: list[str]
    weight: Float32[np.ndarray, " n"]
    scale: Float32[np.ndarray, " n"]
    unit: Num[np.ndarray, "n k"]

    def phi(self) -> Float32[np.ndarray, "n k"]:
        """The features: unit * scale, in float32."""
        return self.unit.astype(np.float32) * self.scale[:, None]

    def factor(self) -> Float32[np.ndarray, " n"]:
        """What the product of each row of `unit` is multiplied with: weight * scale, infinite beyond float32."""
        with np.errstate(over="ignore"):
            return self.weight * self.scale

    def norms(self) -> Float64[np.ndarray, " n"]:
        """‖φ‖₂ per row: the scale, or for int8 ‖unit‖ scale, from a sum of integers."""
        scale = self.scale.astype(np.float64)
        if self.unit.dtype != np.int8:
            return scale
        return scale * np.sqrt(np.einsum("nk,nk->n", self.unit, self.unit, dtype=np.int64))

    def rounding(self) -> float:
        """The largest relative error of a row by int8 rounding, max √k scale / 2‖φ‖; 0 for float rows."""
        if self.unit.dtype != np.int8:
            return 0.0
        half = np.sqrt(self.unit.shape[1]) * self.scale / 2
        return float(np.max(half / np.where(self.scale > 0, self.norms(), 1.0), initial=0.0))


DTYPES = ("float16", "float32", "int8")
LEVELS = 127  # to either side of 0: symmetric, so that -φ is stored as -unit
ROWS = 1024  # quantised at a time, so that a part's quotients are never in memory beside its features
Scale = Float32[np.ndarray, " n"]


def scale_and_unit(phi: Float32[np.ndarray, "n k"], dtype: str) -> tuple[Scale, Num[np.ndarray, "n k"]]:
    """(scale, unit) of finite rows, little-endian. A zero row has scale 0."""
    norm = _norms(phi)
    if dtype == "int8":
        return _quantised(phi)
    unit = phi / np.where(norm > 0, norm, np.float32(1))[:, None]
    return norm, unit.astype(little_endian(dtype))


def little_endian(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _quantised(phi: Float[np.ndarray, "n k"]) -> tuple[Scale, Int8[np.ndarray, "n k"]]:
    """Round to the nearest integer, halves to the even one, so every machine gives the same numbers."""
    peak = np.maximum(phi.max(axis=1, initial=0), -phi.min(axis=1, initial=0))
    scale = peak / np.float32(LEVELS)
    step = np.where(scale > 0, scale, np.float32(1))[:, None]
    unit = np.empty(phi.shape, np.int8)
    for first in range(0, len(phi), ROWS):
        rows = slice(first, first + ROWS)
        # A step among float32's smallest numbers is itself rounded, by up to a half: hence the clip.
        unit[rows] = np.rint(phi[rows] / step[rows]).clip(-LEVELS, LEVELS)
    return scale, unit


def _norms(phi: Float32[np.ndarray, "n k"]) -> Scale:
    """‖φ‖₂ per row, summed in float64: the square of a float32 of 1e20 overflows float32."""
    norm = np.sqrt(np.einsum("nk,nk->n", phi, phi, dtype=np.float64))
    assert np.all(norm <= np.finfo(np.float32).max), "a non-finite feature in a part: it is a reject, not a row"
    return norm.astype(np.float32)
