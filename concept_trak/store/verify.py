"""Verify audits and the features that they name: compare every file with what was recorded about it.

A part is compared with its plan and its record, the files and parts of a finished audit with its manifest, a Gram with
its checksum and the records of its shards, a feature set with its name, and queries with each other. The host, attempt
and seconds of a record cannot be checked.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from concept_trak.store.compaction import checked_compacted
from concept_trak.store.consistency import REPAIR, ExpectedGram, PlannedShard, planned_shard
from concept_trak.store.contents import Checksum, Contents, Key, contents_of
from concept_trak.store.grams import read_gram
from concept_trak.store.identity import FeatureSet, feature_file, read_feature_settings
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Damaged
from concept_trak.store.queries import StoredQuery, query_of_file, read_query, require_alike
from concept_trak.store.records import Record, read_record, record_of
from concept_trak.store.store import Store

SOUND, MISSING, ALTERED, TRUNCATED = "sound", "missing", "altered", "truncated"
LONE_RECORD, LONE_PART, RECOMPUTED = "record without part", "part without record", "recomputed since"
READERS = 4  # parts in memory at a time, up to 90 MB each, and as much again while their pages are checked

GramNodes = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Sequence[str]]]
"""The Grams of a plan: by node the shards that it sums."""


@dataclass(frozen=True)
class Finding:
    """The state of one file.

    Attributes:
        name: the file, relative to the store.
        what: one of the words above.
        audit: the audit whose manifest still lists the earlier content.
        why: what is wrong; empty if `what` is enough.
    """

    name: str
    what: str
    audit: str = ""
    why: str = ""

    @property
    def damage(self) -> bool:
        """A part that was recomputed: it agrees with its record, but the older manifest lists another one."""
        return self.what not in (SOUND, RECOMPUTED)


@dataclass(frozen=True)
class StoredShard:
    """A shard as it is on storage.

    Attributes:
        recorded: whether there is a file under the record's name.
        record: the record; None if it is missing or unreadable.
        checksum: of the part; None if it is missing.
        derived: the record that the part would get; None if the part is missing or wrong.
        why: what is wrong with the part.
    """

    recorded: bool
    record: Record | None
    checksum: Checksum | None
    derived: Record | None
    why: str = ""


def verify_audits(
    audits: Sequence[Audit], gram_nodes: GramNodes, only: Collection[str] | None = None
) -> Iterator[Finding]:
    """A finding for every file of the audits and of their features, also for `sound` ones. Each file is read once.

    In an unfinished audit there is no finding for a shard that is not done, or for a part without a record.

    Args:
        audits: the audits.
        gram_nodes: the Grams of a plan.
        only: restricts it to these names.
    """
    verifier, reported = _Verifier(gram_nodes, only), set[Finding]()
    for audit in audits:
        for finding in verifier.findings(contents_of(audit)):
            if finding not in reported:
                reported.add(finding)
                yield finding


class _Verifier:
    """Verifies features, and keeps the results because several audits may name them."""

    def __init__(self, gram_nodes: GramNodes, only: Collection[str] | None) -> None:
        self._gram_nodes, self._only = gram_nodes, only
        self._shards: dict[Key, StoredShard] = {}
        self._settings: set[FeatureSet] = set()
        self._grams: set[str] = set()

    def findings(self, contents: Contents) -> Iterator[Finding]:
        store = contents.audit.store
        yield from (Finding(name, MISSING) for name in contents.missing)
        yield from (Finding(name, ALTERED) for name in contents.damaged)
        with ThreadPoolExecutor(READERS) as readers:
            files = [name for name in contents.files if self._wanted(name)]
            yield from readers.map(lambda name: _file(store, name, contents.files[name]), files)
            if not contents.finished:
                yield from (finding for finding in _queries(contents.audit) if self._wanted(finding.name))
            keys = [key for key in _present(contents) if self._wanted(*_names(key))]
            unread = [key for key in keys if key not in self._shards]
            planned = {row["shard"]: planned_shard(row) for row in contents.plan}
            states = readers.map(lambda key: _stored_shard(store, key, planned.get(key[1])), unread)
            for key in keys:
                if key not in self._shards:
                    self._shards[key] = next(states)
                yield from _judged(key, self._shards[key], contents)
            for features in contents.features:
                yield from self._of_set(contents, features, readers)

    def _wanted(self, *names: str) -> bool:
        return self._only is None or any(name in self._only for name in names)

    def _of_set(self, contents: Contents, features: FeatureSet, readers: ThreadPoolExecutor) -> Iterator[Finding]:
        """Its settings, the Grams of this plan against the records of their shards, all others by their checksum."""
        store = contents.audit.store
        if features not in self._settings and self._wanted(features.settings_file):
            yield _feature_set(store, features)
        self._settings.add(features)
        yield from self._of_compacted(store, features)
        nodes = self._gram_nodes(contents.plan)
        expected = {features.gram(node): self._expected(store, features, node, s) for node, s in nodes.items()}
        names = [n for n in store.names(features.grams) if self._wanted(n) and (n in expected or n not in self._grams)]
        self._grams.update(names)
        yield from filter(None, readers.map(lambda name: _gram(store, name, expected.get(name)), names))

    def _of_compacted(self, store: Store, features: FeatureSet) -> Iterator[Finding]:
        """The files of many records, against the single ones that were read."""
        names = filter(self._wanted, store.names(features.compacted))
        for name, why in checked_compacted(store, features, names, partial(self._known, features)):
            yield Finding(name, ALTERED if why else SOUND, why=why)

    def _known(self, features: FeatureSet, shard: str) -> Record | None:
        stored = self._shards.get((features, shard))
        return stored.record if stored else None

    def _expected(self, store: Store, features: FeatureSet, node: str, shards: Sequence[str]) -> ExpectedGram | None:
        """What the sum over a node's shards has; None unless all of its parts are sound."""
        records = []
        for shard in shards:
            if (record := self._record(store, features, shard)) is None:
                return None
            records.append(record)
        return ExpectedGram(node, sum(r.rows for r in records), math.fsum(r.sum_squares for r in records))

    def _record(self, store: Store, features: FeatureSet, shard: str) -> Record | None:
        if (features, shard) in self._shards:
            return self._shards[features, shard].derived
        try:
            return read_record(store, features, shard)
        except (FileNotFoundError, Damaged):
            return None


def _present(contents: Contents) -> list[Key]:
    """The parts to verify: all that a manifest lists, or without one those with a file in the store."""
    if contents.finished:
        return list(contents.parts)
    existing = {name for features in contents.features for name in contents.audit.store.names(features.folder)}
    return [key for key in contents.parts if not existing.isdisjoint(_names(key))]


def _names(key: Key) -> tuple[str, str]:
    """The files of a shard: its part and its record."""
    features, shard = key
    return features.part(shard), features.record(shard)


def _stored_shard(store: Store, key: Key, planned: PlannedShard | None) -> StoredShard:
    """Read the record before the part: a part may be committed in between, and no record lacks its part."""
    (features, shard), (part, _), record, recorded = key, _names(key), None, True
    try:
        record = read_record(store, features, shard)
    except FileNotFoundError:
        recorded = False
    except Damaged:
        pass
    try:
        data = store.read(part)
    except FileNotFoundError:
        return StoredShard(recorded=recorded, record=record, checksum=None, derived=None)
    try:
        return StoredShard(
            recorded=recorded,
            record=record,
            checksum=_checksum(data),
            derived=record_of(data, features, planned or shard, part),
        )
    except Damaged as error:
        why = str(error).removeprefix(f"{part}: ").removesuffix(f". {REPAIR}")
        return StoredShard(recorded=recorded, record=record, checksum=_checksum(data), derived=None, why=why)


def _judged(key: Key, shard: StoredShard, contents: Contents) -> Iterator[Finding]:
    """One part against its record, and both against the manifest.

    If part and record disagree, the manifest decides. Without a manifest, or if it agrees with neither, the part counts
    as altered, because it can always be computed again.
    """
    (part, record), listed = _names(key), contents.parts[key]
    if shard.checksum is None:
        yield Finding(record, LONE_RECORD) if shard.recorded else Finding(part, MISSING)
        return
    written = (shard.record.bytes, shard.record.sha256) if shard.record else None
    checksums = [checksum for checksum in (written, listed) if checksum is not None]
    facts = replace(shard.record, seconds=0.0, attempt=0, host="") if shard.record else None
    broken = shard.derived is None or (checksums and shard.checksum not in checksums)
    if broken and checksums and shard.checksum[0] < checksums[0][0]:
        yield Finding(part, TRUNCATED)
    elif broken:
        yield Finding(part, ALTERED, why=shard.why if shard.checksum in checksums else "")
    elif not shard.recorded and contents.finished:
        yield Finding(part, LONE_PART)
    elif listed not in (None, shard.checksum):
        yield Finding(part, RECOMPUTED, contents.audit.id)
    else:
        yield Finding(part, SOUND)
    if shard.recorded and (facts is None or (not broken and facts != shard.derived)):
        yield Finding(record, ALTERED)


def _file(store: Store, name: str, listed: Checksum) -> Finding:
    try:
        checksum = _checksum(store.read(name))
    except FileNotFoundError:
        return Finding(name, MISSING)
    if checksum == listed:
        return Finding(name, SOUND)
    return Finding(name, TRUNCATED if checksum[0] < listed[0] else ALTERED)


def _queries(audit: Audit) -> Iterator[Finding]:
    """The queries of an unfinished audit, of which no manifest has a checksum. One system solves those of a method."""
    by_method: dict[str, dict[str, StoredQuery]] = {}
    for name in audit.store.names(f"audits/{audit.id}"):
        if file := query_of_file(audit, name):
            try:
                by_method.setdefault(file[0], {})[name] = read_query(audit, *file)
            except FileNotFoundError:
                continue
            except Damaged as error:
                yield Finding(name, ALTERED, why=str(error).rpartition(" is damaged: ")[2])
    for queries in by_method.values():
        try:
            for query in queries.values():
                require_alike(query, list(queries.values()))
        except Damaged as error:
            yield from (Finding(name, ALTERED, why=str(error)) for name in queries)
        else:
            yield from (Finding(name, SOUND) for name in queries)


def _feature_set(store: Store, features: FeatureSet) -> Finding:
    try:
        same = FeatureSet.of(read_feature_settings(store, features).settings) == features
    except FileNotFoundError:
        return Finding(features.settings_file, MISSING)
    except Damaged:
        same = False
    return Finding(features.settings_file, SOUND if same else ALTERED)


def _gram(store: Store, name: str, expected: ExpectedGram | None) -> Finding | None:
    """The finding for a Gram; None if it has vanished, which is no damage, because it is summed when it is needed."""
    file = feature_file(name)
    if file is None:
        return None  # this project did not write it
    try:
        k_matrix, count = read_gram(store, file.features, file.stem)
    except Damaged:
        return Finding(name, ALTERED)
    except FileNotFoundError:
        return None
    try:
        if expected is not None:
            expected.require(k_matrix, count)
    except Damaged as error:
        return Finding(name, ALTERED, why=str(error))
    return Finding(name, SOUND)


def _checksum(data: bytes) -> Checksum:
    return len(data), hashlib.sha256(data).hexdigest()
