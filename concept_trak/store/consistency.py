"""Checks that parts and Gram matrices are consistent with their plan and with each other.

The adoption of a part, the passes over all parts and `jobs.verify` use the same functions. A checksum shows that bytes
did not change after they were written. These checks show that the bytes are possible results of this plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from concept_trak.store.codec import decode_blocks, decode_footer, sum_of_squares
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Block, Damaged, FileBytes, Footer, Reject

REPAIR = (
    "Run `python -m jobs.verify repair=true`: it removes the record, then the part, and the shard is computed again."
)
TRACE_TOLERANCE = 5e-3
"""Largest relative difference of tr(K) from the sum of squares: float16 rounds entries by 2^-11, so squares by 1e-3."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard of a plan: `rows` rows of a source, from `first_row` on."""

    name: str
    source: str
    first_row: int
    rows: int


def planned_shard(row: Mapping[str, Any]) -> PlannedShard:
    """A row of a plan (from `read_plan`) as a `PlannedShard`."""
    return PlannedShard(row["shard"], row["source"], row["first_row"], row["rows"])


def checked_blocks(
    data: FileBytes, features: FeatureSet, shard: PlannedShard | str, where: str, intact: bool = False
) -> Iterator[Block]:
    """The rows of a part, one row group at a time, each checked before it is used.

    Args:
        data: the bytes of the part.
        features: the feature set that the part must belong to.
        shard: the shard that the part must hold. A shard given by its name is not compared with a plan.
        where: the part's address, for messages.
        intact: whether the sha256 of the bytes was checked; otherwise page checksums are verified.

    Raises:
        Damaged: the part is damaged, belongs to another shard or other features, differs from the plan in its rows, has
            an id twice, or has a weight or a feature that is not finite. The message begins with `where`.
    """
    try:
        footer = decode_footer(data)
        _require_same_shard(footer, features, shard)
        ids, norms = [reject.sample_id for reject in footer.rejects], np.zeros(0)
        for block in decode_blocks(data, intact):
            _require_finite(block)
            ids += block.ids
            norms = np.concatenate([norms, block.norms()])
            if len(norms) == footer.rows:  # checked before the last rows are yielded, because a caller may stop there
                _require_whole(footer, ids, norms)
            yield block
        if not footer.rows:
            _require_whole(footer, ids, norms)
    except Damaged as error:
        raise Damaged(f"{where}: {error}. {REPAIR}") from error


def checked_footer(data: bytes, features: FeatureSet, shard: PlannedShard | str, where: str) -> Footer:
    """The footer of a part, after a check of the whole part. Raises Damaged as `checked_blocks` does."""
    for _ in checked_blocks(data, features, shard, where):
        pass
    return decode_footer(data)


def require_planned_rows(rows: int, rejected: int, shard: PlannedShard, where: str) -> None:
    """Check that every row of a shard has a feature or a reject. Raises Damaged."""
    if rows + rejected != shard.rows:
        raise Damaged(
            f"{where} has {rows} rows and {rejected} rejects; the plan has {shard.rows} rows for shard"
            f" {shard.name}. {REPAIR}"
        )


def _require_same_shard(footer: Footer, features: FeatureSet, shard: PlannedShard | str) -> None:
    name = shard if isinstance(shard, str) else shard.name
    if (footer.fingerprint, footer.shard) != (features.fingerprint, name):
        raise Damaged(
            f"it is shard {footer.shard} of features {footer.fingerprint}; expected shard {name} of"
            f" {features.fingerprint}. Parts of different settings are never mixed"
        )
    if len({(reject.source, reject.row) for reject in footer.rejects}) != len(footer.rejects):
        raise Damaged("it rejects one row twice")
    if isinstance(shard, str):
        return
    if footer.rows + len(footer.rejects) != shard.rows:
        raise Damaged(f"it has {footer.rows} rows and {len(footer.rejects)} rejects; the plan has {shard.rows} rows")
    if strangers := [reject for reject in footer.rejects if not _is_planned(reject, shard)]:
        raise Damaged(f"it rejects row {strangers[0].row} of {strangers[0].source}, which is not in the shard's plan")


def _require_whole(footer: Footer, ids: Sequence[str], norms: Float[np.ndarray, " n"]) -> None:
    """Check that the ids of rows and rejects are unique, and that the rows have the footer's sum of squares."""
    if repeated := len(ids) - len(set(ids)):
        raise Damaged(f"{repeated} sample ids occur twice")
    if (total := sum_of_squares(norms)) != footer.sum_squares:
        raise Damaged(f"Σ‖φ‖² is {total}, and its footer has {footer.sum_squares}")


def _is_planned(reject: Reject, shard: PlannedShard) -> bool:
    return reject.source == shard.source and 0 <= reject.row - shard.first_row < shard.rows


def _require_finite(block: Block) -> None:
    if not np.isfinite(block.weight).all():
        raise Damaged("a weight is not finite")
    if not (np.isfinite(block.scale) & (block.scale >= 0)).all():
        raise Damaged("a scale is negative or not finite")
    if not _finite(block.unit):
        raise Damaged("a feature has a number that is not finite")


def _finite(unit: np.ndarray) -> bool:
    """Whether all numbers are finite.

    As integers, the bytes of infinity and NaN are larger than those of all finite numbers of the same sign.
    `np.isfinite` takes ten times as long for float16.
    """
    if unit.dtype.kind != "f":
        return True
    infinity = np.asarray(np.inf, unit.dtype)
    signed, unsigned = f"<i{unit.itemsize}", f"<u{unit.itemsize}"
    limits = infinity.view(signed), (-infinity).view(unsigned)
    return unit.size == 0 or bool(unit.view(signed).max() < limits[0] and unit.view(unsigned).max() < limits[1])


@dataclass(frozen=True)
class ExpectedGram:
    """A node of the tree of Gram matrices, with the rows and the sum of squares in the records of its shards."""

    node: str
    count: int
    sum_squares: float

    def require(self, k_matrix: Float32[np.ndarray, "k k"], count: int) -> None:
        """Check that a matrix is a sum over the expected number of rows, and that tr(K) = Σ‖φ‖². Raises Damaged."""
        trace = float(np.trace(k_matrix, dtype=np.float64))
        if count != self.count:
            raise Damaged(f"it is a sum over {count} rows, and its shards have {self.count}")
        if not abs(trace - self.sum_squares) <= TRACE_TOLERANCE * self.sum_squares:
            raise Damaged(
                f"its trace is {trace:.9g}, and the squares of its shards' features sum to {self.sum_squares:.9g}"
            )
