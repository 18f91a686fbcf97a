"""The proof that a shard is done: a part, created once, and a record derived by reading that part back."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from concept_trak.store import codec
from concept_trak.store.adoption import REPAIR, adopt, verified
from concept_trak.store.codec import Damaged, Part
from concept_trak.store.commit import Store
from concept_trak.store.identity import encode_json

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


def part_name(fp: str, shard: str) -> str:
    return _name(fp, "parts", shard, "parquet")


def record_name(fp: str, shard: str) -> str:
    return _name(fp, "commits", shard, "json")


def commit_part(store: Store, part: Part, dtype: str, encoding: str, seconds: float, attempt: int, host: str) -> Record:
    """Create the part, or adopt the one that stands there; then derive and create its record.

    Raises:
        ValueError: what stands there belongs to other settings or holds other samples (both sides named), or is
            damaged.
        OSError: storage failed; nothing half-written is left.
    """
    name = part_name(part.fingerprint, part.shard)
    if not store.create(name, codec.encode(part, dtype, encoding)):
        adopt(store, name, part)
    return derive_record(store, part.fingerprint, part.shard, seconds, attempt, host)


def derive_record(store: Store, fp: str, shard: str, seconds: float = 0.0, attempt: int = 0, host: str = "") -> Record:
    """The record of a committed part, from reading it: every page checked, rows and Σ‖φ‖² counted again.

    Returns the record that stands: another process may have derived it at the same time.
    """
    name = part_name(fp, shard)
    data = store.read(name)
    found = record_of(data, fp, shard, f"{store.uri}/{name}")
    ours = replace(found, seconds=seconds, attempt=attempt, host=host)
    if store.create(record_name(fp, shard), encode_json(asdict(ours))):
        return ours
    standing = read_record(store, fp, shard)
    _require_same_bytes(standing, data, f"{store.uri}/{name}")
    return standing


def record_of(data: bytes, fp: str, shard: str, where: str) -> Record:
    """What the bytes of a part say of themselves, every page checked; nobody knows who computed them, or how long.

    Raises:
        ValueError: they are damaged, or another shard's or feature set's; the message begins with `where`.
    """
    said = verified(data, fp, shard, where)
    return Record(
        shard=shard,
        rows=said.rows,
        rejected=len(said.rejects),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sum_squares=said.sum_squares,
        seconds=0.0,
        attempt=0,
        host="",
        rejects_by_reason=dict(sorted(Counter(reject.reason for reject in said.rejects).items())),
        fingerprint=fp,
    )


def read_part(store: Store, record: Record) -> bytes:
    """The bytes of a committed part, checked against its record before use. Raises Damaged, naming the part."""
    name = part_name(record.fingerprint, record.shard)
    data = store.read(name)
    _require_same_bytes(record, data, f"{store.uri}/{name}")
    return data


def committed(store: Store, fp: str, shards: Sequence[str]) -> dict[str, Record]:
    """The records of those shards that are done, in the order asked. A part without a record gets one now.

    Raises:
        ValueError: a record whose part is gone, a damaged file, or a record of another fingerprint.
    """
    records = set(store.names(f"features/{fp}/commits"))  # before the parts: a shard may be committed in between
    parts = set(store.names(f"features/{fp}/parts"))
    done = [shard for shard in shards if record_name(fp, shard) in records]
    if lost := [shard for shard in done if part_name(fp, shard) not in parts]:
        raise ValueError(
            f"{len(lost)} of {len(shards)} shards have a record but no part, first {store.uri}/"
            f"{part_name(fp, lost[0])}. Expected the part beside its record; it was removed from outside. {REPAIR}"
        )
    orphans = [shard for shard in shards if part_name(fp, shard) in parts and record_name(fp, shard) not in records]
    with ThreadPoolExecutor(READERS) as readers:
        found = dict(zip(done, readers.map(lambda shard: read_record(store, fp, shard), done), strict=True))
    found |= {shard: derive_record(store, fp, shard) for shard in orphans}
    return {shard: found[shard] for shard in shards if shard in found}


def standing(store: Store, fp: str, shard: str) -> Record | None:
    """The record of one shard, derived if only its part is there; None if it is not done. It asks for names, not lists.

    Raises:
        ValueError: what stands there is damaged, or another shard's.
    """
    if store.size(part_name(fp, shard)) is None:
        return None
    with contextlib.suppress(FileNotFoundError):
        return read_record(store, fp, shard)
    return derive_record(store, fp, shard)


def read_record(store: Store, fp: str, shard: str) -> Record:
    """The record that stands for a shard. Absent: FileNotFoundError; ValueError: damaged, or another shard's."""
    name = record_name(fp, shard)
    try:
        record = Record(**json.loads(store.read(name)))
    except (ValueError, TypeError) as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}. {REPAIR}") from error
    if (record.fingerprint, record.shard) != (fp, shard):
        raise ValueError(
            f"{store.uri}/{name} records shard {record.shard} of {record.fingerprint}; expected {shard} of {fp}."
            f" {REPAIR}"
        )
    return record


def _require_same_bytes(record: Record, data: bytes, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if (len(data), found) != (record.bytes, record.sha256):
        raise Damaged(
            f"{where} was truncated or altered: {len(data)} bytes with sha256 {found}; its record says {record.bytes}"
            f" bytes with {record.sha256}. {REPAIR}"
        )


def _name(fp: str, folder: str, file: str, suffix: str) -> str:
    assert "/" not in file, f"a file name of a feature set has no slash: {file!r}"
    return f"features/{fp}/{folder}/{file}.{suffix}"
