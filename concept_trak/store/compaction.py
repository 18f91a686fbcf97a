"""Compaction: files with the records of many shards, so that an audit reads a few files instead of one for each shard.

The single records remain the truth. Each row has the version that its record had in the listing of the records' folder.
A row is used only while the listing has the same version; a record that was removed, or written again, is read on its
own. These files can therefore be removed at any time, and nothing has to remove them.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from concept_trak import UserError
from concept_trak.store.consistency import REPAIR, PlannedShard, require_planned_rows
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Damaged
from concept_trak.store.records import READERS, Record, derive_record, read_record, require_possible
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, read_parquet, to_parquet

MOST = 4096  # records of one file: about a megabyte
LEAST = 64  # fewer records are left single: otherwise many runs of a few shards would leave as many files
MANY = 64  # files; if there are more, their records are written again to full files
KINDS = {"version": "string", "shard": "string", "rows": "int64", "rejected": "int64", "bytes": "int64",
         "sha256": "string", "sum_squares": "float64", "seconds": "float64", "attempt": "int64", "host": "string",
         "rejects_by_reason": "string", "fingerprint": "string"}  # fmt: skip
logger = logging.getLogger(__name__)


def committed(store: Store, features: FeatureSet, shards: Sequence[PlannedShard]) -> dict[str, Record]:
    """The records of the shards that are done, by name, in the order of `shards`. A part without a record gets one.

    Raises:
        UserError: a record has no part, belongs to other features or differs from the plan in its rows, or a file is
            damaged.
    """
    versions = store.versions(features.records)  # listed before the parts: a shard may be committed between the two
    parts = set(store.names(features.parts))
    done = [shard for shard in shards if features.record(shard.name) in versions]
    if lost := [shard for shard in done if features.part(shard.name) not in parts]:
        raise UserError(
            f"{len(lost)} of {len(shards)} shards have a record but no part, first {store.uri}/"
            f"{features.part(lost[0].name)}. Expected a part for every record; another program removed it. {REPAIR}"
        )
    orphans = [s for s in shards if features.part(s.name) in parts and features.record(s.name) not in versions]
    by_name = {record.shard: record for record in read_compacted(store, features, versions)}
    single = [shard for shard in done if shard.name not in by_name]
    with ThreadPoolExecutor(READERS) as readers:
        read = [*readers.map(lambda shard: read_record(store, features, shard), single)]
    if len(read) >= LEAST:
        write_compacted(store, features, read, versions)
    by_name |= {record.shard: record for record in (*read, *(derive_record(store, features, s) for s in orphans))}
    records = {shard.name: by_name[shard.name] for shard in shards if shard.name in by_name}
    for shard in done:
        record = records[shard.name]
        require_planned_rows(record.rows, record.rejected, shard, f"{store.uri}/{features.record(shard.name)}")
    return records


def read_compacted(store: Store, features: FeatureSet, versions: Mapping[str, str]) -> Iterator[Record]:
    """The records in compacted files that are still valid.

    Args:
        store: the store.
        features: the feature set.
        versions: the versions of the single records; a compacted record of another version is not used.
    """
    names = store.names(features.compacted)
    with ThreadPoolExecutor(READERS) as readers:
        rows = [row for file in readers.map(lambda name: _readable_rows(store, name), names) for row in file]
    records = [r for version, r in rows if version and versions.get(features.record(r.shard)) == version]
    if len(names) > MANY:
        write_compacted(store, features, {r.shard: r for r in records}.values(), versions)
        full = set(store.names(features.compacted)).difference(names)
        for name in names if full else ():
            store.delete(name)
    yield from records


def _readable_rows(store: Store, name: str) -> list[tuple[str, Record]]:
    """The records of a file with their versions; empty if the file is gone or damaged (`jobs.verify` reports it)."""
    try:
        return compacted_rows(store, name)
    except FileNotFoundError:
        return []
    except Damaged as error:
        logger.warning("%s/%s is not used and its records are read one by one: %s", store.uri, name, error)
        return []


def compacted_rows(store: Store, name: str) -> list[tuple[str, Record]]:
    """Each record of a file, with the version that it had in the listing of single records.

    Raises:
        FileNotFoundError: the file is gone.
        Damaged: the file cannot be read, or its name is not the digest of its bytes.
    """
    data = store.read(name)
    if not name.endswith(f"/{_digest(data)}.parquet"):
        raise Damaged("its name is not the digest of its bytes")
    try:
        return [_from_row(row) for row in read_parquet(data).to_pylist()]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def checked_compacted(
    store: Store, features: FeatureSet, names: Iterable[str], single: Callable[[str], Record | None]
) -> Iterator[tuple[str, str]]:
    """(name, problem) of each compacted file; the problem is "" for a sound file.

    Args:
        store: the store.
        features: the feature set.
        names: the files.
        single: returns the single record of a shard, or None if it is not known.
    """
    versions = store.versions(features.records)
    for name in names:
        try:
            rows = compacted_rows(store, name)
        except FileNotFoundError:
            continue
        except Damaged as error:
            yield name, str(error)
            continue
        stale = next((r.shard for version, r in rows if versions.get(features.record(r.shard)) == version
                      and single(r.shard) not in (None, r)), "")  # fmt: skip
        yield name, f"its record of {stale} differs from {features.record(stale)}" if stale else ""


def write_compacted(
    store: Store, features: FeatureSet, records: Iterable[Record], versions: Mapping[str, str] | None = None
) -> None:
    """Write records to compacted files. `versions` is a listing of the single records; without it, one is made."""
    listed = store.versions(features.records) if versions is None else versions
    rows = [{"version": version, **_row(r)} for r in records if (version := listed.get(features.record(r.shard)))]
    for start in range(0, len(rows), MOST):
        data = to_parquet(from_rows(KINDS, rows[start : start + MOST]))
        store.create(features.compacted_file(_digest(data)), data)


@dataclass
class RecordGatherer:
    """Collects the records of a run as its shards finish, and writes them to compacted files.

    Each write costs a listing of all single records, so a write waits until there are as many new records as written
    ones. All listings together then cost at most three times the last one, and a run that is killed leaves at most half
    of its records to be read one by one.
    """

    store: Store
    features: FeatureSet
    records: list[Record] = field(default_factory=list)
    written: int = 0

    def add(self, record: Record) -> None:
        self.records.append(record)
        if len(self.records) >= max(MOST, self.written):
            self._write()

    def finish(self) -> None:
        """Write the remaining records, unless they are few."""
        if len(self.records) >= LEAST:
            self._write()

    def _write(self) -> None:
        write_compacted(self.store, self.features, self.records)
        self.written += len(self.records)
        self.records.clear()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _row(record: Record) -> dict[str, Any]:
    return {**asdict(record), "rejects_by_reason": json.dumps(record.rejects_by_reason)}


def _from_row(row: dict[str, Any]) -> tuple[str, Record]:
    version, reasons = row.pop("version"), json.loads(row.pop("rejects_by_reason"))
    shared = {key: sys.intern(row[key]) for key in ("host", "fingerprint")}
    record = Record(**{**row, **shared}, rejects_by_reason=reasons)
    require_possible(record)
    return version, record
