"""Commit a shard: create its part once, then derive its record by reading the part back.

If another attempt has created the part, it is checked for damage and adopted if it is the same shard.
"""

import contextlib
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa

from concept_trak import UserError
from concept_trak.store.codec import decode_footer, encode_part
from concept_trak.store.consistency import (
    REPAIR,
    PlannedShard,
    checked_blocks,
    checked_footer,
    require_planned_rows,
)
from concept_trak.store.identity import FeatureSet, encode_json
from concept_trak.store.part import Block, Damaged, FileBytes, Part
from concept_trak.store.store import Store

READERS = 16  # requests in flight where there are many: storage answers in tens of milliseconds each


@dataclass(frozen=True, slots=True)
class Record:
    """A part's counts, size in bytes, sha256 and Σ‖φ‖²; and the host, attempt and seconds of its computation."""

    shard: str
    rows: int
    rejected: int
    bytes: int
    sha256: str
    sum_squares: float
    seconds: float
    attempt: int
    host: str
    rejects_by_reason: dict[str, int]
    fingerprint: str


def commit_part(store: Store, part: Part, dtype: str, encoding: str, seconds: float, attempt: int, host: str) -> Record:
    """Create the part, or adopt an existing one; then derive and create its record.

    Raises:
        UserError: the existing part has other settings or other samples (the message names both), or is damaged.
        OSError: storage failed; no half-written file is left.
    """
    name = FeatureSet(part.fingerprint).part(part.shard)
    if not store.create(name, encode_part(part, dtype, encoding)):
        adopt(store, name, part)
    return derive_record(store, FeatureSet(part.fingerprint), part.shard, seconds, attempt, host)


def derive_record(
    store: Store,
    features: FeatureSet,
    shard: PlannedShard | str,
    seconds: float = 0.0,
    attempt: int = 0,
    host: str = "",
) -> Record:
    """The record of a committed part, after all of the part was checked.

    Returns the record that is there afterwards: another process may have derived it at the same time.

    Args:
        store, features: where the part is.
        shard: the shard as planned; if it is only a name, the part is not compared with a plan.
        seconds, attempt, host: of the computation of the part.
    """
    name = _name(shard)
    data = store.read(features.part(name))
    facts = record_of(data, features, shard, f"{store.uri}/{features.part(name)}")
    ours = replace(facts, seconds=seconds, attempt=attempt, host=host)
    if store.create(features.record(name), encode_json(asdict(ours))):
        return ours
    theirs = read_record(store, features, shard)
    _require_same_bytes(theirs, data, f"{store.uri}/{features.part(name)}")
    return theirs


def record_of(data: bytes, features: FeatureSet, shard: PlannedShard | str, where: str) -> Record:
    """The record of a part from its bytes, all of which are checked; host, attempt and seconds are not in it.

    Raises:
        Damaged: as `checked_blocks` does; the message begins with `where`.
    """
    footer = checked_footer(data, features, shard, where)
    return Record(
        shard=_name(shard),
        rows=footer.rows,
        rejected=len(footer.rejects),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sum_squares=footer.sum_squares,
        seconds=0.0,
        attempt=0,
        host="",
        rejects_by_reason=dict(sorted(Counter(reject.reason for reject in footer.rejects).items())),
        fingerprint=features.fingerprint,
    )


def read_part(store: Store, record: Record) -> pa.Buffer:
    """The bytes of a committed part, compared with its record before use. Raises Damaged, naming the part."""
    name = FeatureSet(record.fingerprint).part(record.shard)
    data = store.read_buffer(name)
    _require_same_bytes(record, data, f"{store.uri}/{name}")
    return data


def part_blocks(store: Store, record: Record, data: FileBytes) -> Iterator[Block]:
    """The rows of a part that `read_part` returned, one row group at a time, each checked before it is used.

    Raises:
        Damaged: as `checked_blocks` does, or the record has other counts than the part; the message names the part.
    """
    features = FeatureSet(record.fingerprint)
    where = f"{store.uri}/{features.part(record.shard)}"
    footer = decode_footer(data)
    if (footer.rows, len(footer.rejects), footer.sum_squares) != (record.rows, record.rejected, record.sum_squares):
        raise Damaged(f"{where} has {footer.rows} rows; its record has {record.rows}, or another sum. {REPAIR}")
    yield from checked_blocks(data, features, record.shard, where, intact=True)


def find_record(store: Store, features: FeatureSet, shard: PlannedShard) -> Record | None:
    """The record of one shard, derived if only its part exists; None if the shard is not done. It lists no folder.

    Raises:
        UserError: a file is damaged, belongs to another shard, or has other rows than the plan.
    """
    if store.size(features.part(shard.name)) is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        return read_record(store, features, shard)
    return derive_record(store, features, shard)


def read_record(store: Store, features: FeatureSet, shard: PlannedShard | str) -> Record:
    """The record of a shard, compared with the plan unless the shard is only a name.

    Raises:
        FileNotFoundError: the shard has no record.
        Damaged: the record is damaged, another shard's, or has other rows than the plan; the message names it.
    """
    where = f"{store.uri}/{features.record(_name(shard))}"
    data = store.read(features.record(_name(shard)))
    try:
        record = Record(**json.loads(data))
        require_possible(record)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{where} is damaged: {error}. {REPAIR}") from error
    if (record.fingerprint, record.shard) != (features.fingerprint, _name(shard)):
        raise Damaged(
            f"{where} records shard {record.shard} of {record.fingerprint}; expected {_name(shard)} of"
            f" {features.fingerprint}. {REPAIR}"
        )
    if not isinstance(shard, str):
        require_planned_rows(record.rows, record.rejected, shard, where)
    return record


def require_possible(record: Record) -> None:
    """That the counts and the sum of a record are numbers it can have. Raises ValueError."""
    counts = (record.rows, record.rejected, record.bytes, *record.rejects_by_reason.values())
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("a count is no whole number from 0")
    if sum(record.rejects_by_reason.values()) != record.rejected:
        raise ValueError(f"{record.rejected} rejects, and reasons for another number")
    if not 0 <= record.sum_squares < math.inf:
        raise ValueError(f"sum_squares is {record.sum_squares}")


def _name(shard: PlannedShard | str) -> str:
    return shard if isinstance(shard, str) else shard.name


def _require_same_bytes(record: Record, data: FileBytes, where: str) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (record.bytes, record.sha256):
        raise Damaged(
            f"{where} was truncated or altered: {len(data)} bytes with sha256 {digest}; its record states"
            f" {record.bytes} bytes with {record.sha256}. {REPAIR}"
        )


# Two roundings of one number to float16 differ by at most 2^-10, hence two stored rows by at most 1e-3. Five times
# that leaves room for the order of sums at another batch size or device; a larger difference is another computation.
# The tolerance of int8 is larger, row by row: `Block.rounding`.
ADOPT_TOLERANCE = 5e-3
logger = logging.getLogger(__name__)


def adopt(store: Store, name: str, ours: Part) -> None:
    """Check that the part of another attempt is the same shard, and log how far its rows are from ours.

    Raises:
        UserError: it holds other samples (both sides are named), or is damaged.
    """
    data = store.read(name)
    where = f"{store.uri}/{name}"
    standing = list(checked_blocks(data, FeatureSet(ours.fingerprint), ours.shard, where))
    footer, theirs = decode_footer(data), [sample_id for block in standing for sample_id in block.ids]
    rejects = [{(r.sample_id, r.source, r.row) for r in part.rejects} for part in (ours, footer)]
    if theirs != list(ours.ids) or footer.k != ours.phi.shape[1] or rejects[0] != rejects[1]:
        raise UserError(
            f"{where} holds {len(theirs)} rows of k={footer.k} ({_first_difference(theirs, ours.ids)}) and"
            f" {len(footer.rejects)} rejects, but this attempt computed {len(ours.ids)} rows of k={ours.phi.shape[1]}"
            f" ({_first_difference(ours.ids, theirs)}) and {len(ours.rejects)} rejects. Expected the same samples under"
            f" one shard name: the data changed under its version, or rejects differ. {REPAIR}"
        )
    cuts = np.cumsum([len(block.ids) for block in standing])[:-1]
    mine = np.split(ours.phi, cuts) if standing else []
    largest = max((_row_difference(a, block.phi()) for a, block in zip(mine, standing, strict=True)), default=0.0)
    explained = ADOPT_TOLERANCE + max((block.rounding() for block in standing), default=0.0)
    level = logging.WARNING if largest > explained else logging.INFO
    text = "adopted %s, written by another attempt; largest relative row difference %.2g (rounding explains %.2g)"
    logger.log(level, text, where, largest, explained)


def _row_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max over rows of ‖a − b‖ / max(‖a‖, ‖b‖), in float64; 0 if both are zero."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    size = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return float(np.max(np.linalg.norm(a - b, axis=1) / np.where(size > 0, size, 1.0)))


def _first_difference(ids: Sequence[str], others: Sequence[str]) -> str:
    """The first sample that differs from the other list's sample at the same position."""
    differing = (sample_id for row, sample_id in enumerate(ids) if row >= len(others) or sample_id != others[row])
    return f"first difference {next(differing, 'none')}"
