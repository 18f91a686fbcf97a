"""The proof that a shard is done: a part, created once, and a record derived by reading that part back.

A part that another attempt left: whether it is whole, and whether it is the same shard as ours.
"""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np

from concept_trak import UserError
from concept_trak.store import codec
from concept_trak.store.codec import Damaged, Footer, Part
from concept_trak.store.identity import FeatureSet, encode_json
from concept_trak.store.store import Store

READERS = 16  # requests in flight while records are read: storage answers in tens of milliseconds each


@dataclass(frozen=True)
class Record:
    """What stands under a part's name: counts, size in bytes, sha256, Σ‖φ‖²; and who computed it, in how long (s)."""

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
    """Create the part, or adopt the one that stands there; then derive and create its record.

    Raises:
        UserError: what stands there belongs to other settings or holds other samples (both sides named), or is
            damaged.
        OSError: storage failed; nothing half-written is left.
    """
    name = FeatureSet(part.fingerprint).part(part.shard)
    if not store.create(name, codec.encode_part(part, dtype, encoding)):
        adopt(store, name, part)
    return derive_record(store, FeatureSet(part.fingerprint), part.shard, seconds, attempt, host)


def derive_record(
    store: Store, features: FeatureSet, shard: str, seconds: float = 0.0, attempt: int = 0, host: str = ""
) -> Record:
    """The record of a committed part, from reading it: every page checked, rows and Σ‖φ‖² counted again.

    Returns the record that stands: another process may have derived it at the same time.
    """
    name = features.part(shard)
    data = store.read(name)
    record = record_of(data, features, shard, f"{store.uri}/{name}")
    ours = replace(record, seconds=seconds, attempt=attempt, host=host)
    if store.create(features.record(shard), encode_json(asdict(ours))):
        return ours
    standing = read_record(store, features, shard)
    _require_same_bytes(standing, data, f"{store.uri}/{name}")
    return standing


def record_of(data: bytes, features: FeatureSet, shard: str, where: str) -> Record:
    """What the bytes of a part say of themselves, every page checked; nobody knows who computed them, or how long.

    Raises:
        UserError: they are damaged, or another shard's or feature set's; the message begins with `where`.
    """
    footer = verified_footer(data, features, shard, where)
    return Record(
        shard=shard,
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


def read_part(store: Store, record: Record) -> bytes:
    """The bytes of a committed part, checked against its record before use. Raises Damaged, naming the part."""
    name = FeatureSet(record.fingerprint).part(record.shard)
    data = store.read(name)
    _require_same_bytes(record, data, f"{store.uri}/{name}")
    return data


def committed(store: Store, features: FeatureSet, shards: Sequence[str]) -> dict[str, Record]:
    """The records of those shards that are done, in the order asked. A part without a record gets one now.

    Raises:
        UserError: a record whose part is gone, a damaged file, or a record of another fingerprint.
    """
    records = set(store.names(features.records))  # before the parts: a shard may be committed in between
    parts = set(store.names(features.parts))
    done = [shard for shard in shards if features.record(shard) in records]
    if lost := [shard for shard in done if features.part(shard) not in parts]:
        raise UserError(
            f"{len(lost)} of {len(shards)} shards have a record but no part, first {store.uri}/"
            f"{features.part(lost[0])}. Expected the part beside its record; it was removed from outside. {REPAIR}"
        )
    orphans = [shard for shard in shards if features.part(shard) in parts and features.record(shard) not in records]
    with ThreadPoolExecutor(READERS) as readers:
        records = dict(zip(done, readers.map(lambda shard: read_record(store, features, shard), done), strict=True))
    records |= {shard: derive_record(store, features, shard) for shard in orphans}
    return {shard: records[shard] for shard in shards if shard in records}


def find_record(store: Store, features: FeatureSet, shard: str) -> Record | None:
    """The record of one shard, derived if only its part is there; None if it is not done. It asks for names, not lists.

    Raises:
        UserError: what stands there is damaged, or another shard's.
    """
    if store.size(features.part(shard)) is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        return read_record(store, features, shard)
    return derive_record(store, features, shard)


def read_record(store: Store, features: FeatureSet, shard: str) -> Record:
    """The record that stands for a shard. Absent: FileNotFoundError; ValueError: damaged, or another shard's."""
    name = features.record(shard)
    try:
        record = Record(**json.loads(store.read(name)))
    except (ValueError, TypeError) as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}. {REPAIR}") from error
    if (record.fingerprint, record.shard) != (features.fingerprint, shard):
        raise UserError(
            f"{store.uri}/{name} records shard {record.shard} of {record.fingerprint}; expected {shard} of"
            f" {features.fingerprint}. {REPAIR}"
        )
    return record


def _require_same_bytes(record: Record, data: bytes, where: str) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (record.bytes, record.sha256):
        raise Damaged(
            f"{where} was truncated or altered: {len(data)} bytes with sha256 {digest}; its record says {record.bytes}"
            f" bytes with {record.sha256}. {REPAIR}"
        )


# Two roundings of one number to float16 differ by at most 2^-10, hence two stored rows by at most 1e-3. Five times
# that leaves room for sums reordered by another batch size or device; what is above is another computation. int8
# explains more, row by row: `Block.rounding`.
ADOPT_TOLERANCE = 5e-3
REPAIR = "Run `python -m jobs.verify repair=true`: it removes the record, then the part, and the shard is done again."
logger = logging.getLogger(__name__)


def adopt(store: Store, name: str, ours: Part) -> None:
    """Check that the part another attempt left is the same shard, and log how far its rows are from ours."""
    data = store.read(name)
    where = f"{store.uri}/{name}"
    footer = verified_footer(data, FeatureSet(ours.fingerprint), ours.shard, where)
    standing = list(codec.decode_blocks(data))
    theirs = [sample_id for block in standing for sample_id in block.ids]
    if theirs != list(ours.ids) or footer.k != ours.phi.shape[1]:
        raise UserError(
            f"{where} holds {len(theirs)} rows of k={footer.k} ({_first_difference(theirs, ours.ids)}), but this try"
            f" computed {len(ours.ids)} rows of k={ours.phi.shape[1]} ({_first_difference(ours.ids, theirs)}). Expected"
            f" the same samples under one shard name: the data changed under its version, or rejects differ. {REPAIR}"
        )
    cuts = np.cumsum([len(block.ids) for block in standing])[:-1]
    mine = np.split(ours.phi, cuts) if standing else []
    largest = max((_row_difference(a, block.phi()) for a, block in zip(mine, standing, strict=True)), default=0.0)
    explained = ADOPT_TOLERANCE + max((block.rounding() for block in standing), default=0.0)
    level = logging.WARNING if largest > explained else logging.INFO
    text = "adopted %s, written by another attempt; largest relative row difference %.2g (rounding explains %.2g)"
    logger.log(level, text, where, largest, explained)


def _row_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max over rows of ‖a − b‖ / max(‖a‖, ‖b‖), in float64; 0 where both are zero."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    size = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return float(np.max(np.linalg.norm(a - b, axis=1) / np.where(size > 0, size, 1.0)))


def _first_difference(ids: Sequence[str], others: Sequence[str]) -> str:
    """The first sample that the others do not have at its place."""
    differing = (sample_id for row, sample_id in enumerate(ids) if row >= len(others) or sample_id != others[row])
    return f"first difference {next(differing, 'none')}"


def verified_footer(data: bytes, features: FeatureSet, shard: str, where: str) -> Footer:
    """The footer of a part whose pages, rows and Σ‖φ‖² hold, and that is the shard it is named after."""
    try:
        footer = codec.decode_footer(data)
        norms = [block.norms() for block in codec.decode_blocks(data)]
        sum_squares = codec.sum_of_squares(np.concatenate([*norms, np.zeros(0)]))
    except Damaged as error:
        raise Damaged(f"{where}: {error}. {REPAIR}") from error
    if (footer.fingerprint, footer.shard) != (features.fingerprint, shard):
        raise UserError(
            f"{where} is shard {footer.shard} of features {footer.fingerprint}; expected shard {shard} of"
            f" {features.fingerprint}. Parts of different settings are never mixed. {REPAIR}"
        )
    if sum_squares != footer.sum_squares:
        raise Damaged(f"{where}: Σ‖φ‖² is {sum_squares}, its footer says {footer.sum_squares}. {REPAIR}")
    return footer
