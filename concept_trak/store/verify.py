"""What is wrong with audits and the features they name: every file against what was written down about it.

A part is held against its record, the files and parts of a finished audit against its manifest, a Gram against its own
checksum, a feature set against its name. Of a record, who computed it and in how long cannot be checked.

What an audit says there is: its files, and the features it names.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from concept_trak.store.grams import read_gram
from concept_trak.store.identity import PART, FeatureSet, feature_file, read_feature_settings
from concept_trak.store.manifest import Audit, feature_sets, read_manifest, read_plan
from concept_trak.store.part import Damaged
from concept_trak.store.records import Record, read_record, record_of
from concept_trak.store.store import Store

SOUND, MISSING, ALTERED, TRUNCATED = "sound", "missing", "altered", "truncated"
LONE_RECORD, LONE_PART, RECOMPUTED = "record without part", "part without record", "recomputed since"
READERS = 4  # parts in memory at a time, up to 90 MB each, and as much again while their pages are checked


@dataclass(frozen=True)
class Finding:
    """What is the matter with one file. `audit` is the one whose manifest still lists what stood there before."""

    name: str
    what: str
    audit: str = ""

    @property
    def damage(self) -> bool:
        """A part that was recomputed agrees with its record; only the older manifest knows another one."""
        return self.what not in (SOUND, RECOMPUTED)


Checksum = tuple[int, str]  # bytes of a file: how many, and their sha256


@dataclass(frozen=True)
class StoredShard:
    """A shard as it is on storage. `derived` is the record that its part would get; None: no part, or a damaged one."""

    recorded: bool
    record: Record | None
    mark: Checksum | None
    derived: Record | None


def verify_audits(audits: Sequence[Audit], only: Collection[str] | None = None) -> Iterator[Finding]:
    """A finding for every file of the audits and of the features they name, `sound` ones too; each file is read once.

    In an unfinished audit a shard that is not done is no finding, nor is a part whose record is still to be derived.
    `only` restricts it to these names.
    """
    states: dict[Key, StoredShard] = {}
    sets: set[FeatureSet] = set()
    reported: set[Finding] = set()
    for audit in audits:
        contents = contents_of(audit)
        for finding in _findings(contents, states, sets, only):
            if finding not in reported:
                reported.add(finding)
                yield finding


Key = tuple[FeatureSet, str]  # a part: its features and its shard


@dataclass(frozen=True)
class Contents:
    """Files and parts by name, with their marks once the audit is finished; and what of its own files is unreadable."""

    audit: Audit
    features: tuple[FeatureSet, ...] = ()
    files: Mapping[str, Checksum] = field(default_factory=dict)
    parts: Mapping[Key, Checksum | None] = field(default_factory=dict)
    finished: bool = False
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def _findings(
    contents: Contents, states: dict[Key, StoredShard], sets: set[FeatureSet], only: Collection[str] | None
) -> Iterator[Finding]:
    store = contents.audit.store

    def asked(*names: str) -> bool:
        return only is None or any(name in only for name in names)

    yield from (Finding(name, MISSING) for name in contents.missing)
    yield from (Finding(name, ALTERED) for name in contents.damaged)
    with ThreadPoolExecutor(READERS) as readers:
        files = [name for name in contents.files if asked(name)]
        yield from readers.map(lambda name: _file(store, name, contents.files[name]), files)
        keys = [key for key in _present(contents) if asked(*_names(key))]
        fresh = readers.map(lambda key: _state(store, key), [key for key in keys if key not in states])
        for key in keys:
            states[key] = states[key] if key in states else next(fresh)
            yield from _judged(key, states[key], contents)
        for features in (features for features in contents.features if features not in sets):
            sets.add(features)
            yield from filter(lambda finding: asked(finding.name), [_feature_set(store, features)])
            grams = filter(asked, store.names(features.grams))
            yield from filter(None, readers.map(lambda name: _gram(store, name), grams))


def _present(contents: Contents) -> list[Key]:
    """The parts to look at: all that a manifest lists, else those of which something stands in the store."""
    if contents.finished:
        return list(contents.parts)
    standing = {name for features in contents.features for name in contents.audit.store.names(features.folder)}
    return [key for key in contents.parts if not standing.isdisjoint(_names(key))]


def _names(key: Key) -> tuple[str, str]:
    """The files of a shard: its part and its record."""
    features, shard = key
    return features.part(shard), features.record(shard)


def _state(store: Store, key: Key) -> StoredShard:
    """The record is read first: a part may be committed in between, and its record never stands alone."""
    (part, _), record, recorded = _names(key), None, True
    try:
        record = read_record(store, *key)
    except FileNotFoundError:
        recorded = False
    except ValueError:
        pass
    try:
        data = store.read(part)
    except FileNotFoundError:
        return StoredShard(recorded, record, None, None)
    try:
        derived = record_of(data, *key, part)
    except ValueError:
        derived = None
    return StoredShard(recorded, record, _mark(data), derived)


def _judged(key: Key, state: StoredShard, contents: Contents) -> Iterator[Finding]:
    """One part against its record, and both against the manifest.

    Where part and record disagree, the manifest decides; without one, or when it agrees with neither, the part counts
    as the altered one, because computing it again is always right.
    """
    (part, record), listed = _names(key), contents.parts[key]
    if state.mark is None:
        yield Finding(record, LONE_RECORD) if state.recorded else Finding(part, MISSING)
        return
    written = (state.record.bytes, state.record.sha256) if state.record else None
    known = [mark for mark in (written, listed) if mark is not None]
    facts = replace(state.record, seconds=0.0, attempt=0, host="") if state.record else None
    broken = state.derived is None or (known and state.mark not in known)
    if broken:
        yield Finding(part, TRUNCATED if known and state.mark[0] < known[0][0] else ALTERED)
    elif not state.recorded and contents.finished:
        yield Finding(part, LONE_PART)
    elif listed not in (None, state.mark):
        yield Finding(part, RECOMPUTED, contents.audit.id)
    else:
        yield Finding(part, SOUND)
    if state.recorded and (facts is None or (not broken and facts != state.derived)):
        yield Finding(record, ALTERED)


def _file(store: Store, name: str, listed: Checksum) -> Finding:
    try:
        mark = _mark(store.read(name))
    except FileNotFoundError:
        return Finding(name, MISSING)
    if mark == listed:
        return Finding(name, SOUND)
    return Finding(name, TRUNCATED if mark[0] < listed[0] else ALTERED)


def _feature_set(store: Store, features: FeatureSet) -> Finding:
    try:
        same = FeatureSet.of(read_feature_settings(store, features).settings) == features
    except FileNotFoundError:
        return Finding(features.settings_file, MISSING)
    except Damaged:
        same = False
    return Finding(features.settings_file, SOUND if same else ALTERED)


def _gram(store: Store, name: str) -> Finding | None:
    """None for one that is gone since it was listed: a missing Gram is no damage, it is summed when it is needed."""
    file = feature_file(name)
    if file is None:
        return None  # somebody else's
    try:
        read_gram(store, file.features, file.stem)
    except Damaged:
        return Finding(name, ALTERED)
    except FileNotFoundError:
        return None
    return Finding(name, SOUND)


def _mark(data: bytes) -> Checksum:
    return len(data), hashlib.sha256(data).hexdigest()


def contents_of(audit: Audit) -> Contents:
    """From the manifest; as long as there is none that can be read, from the configuration and the plan."""
    missing, damaged = [], []
    try:
        if (listed := read_manifest(audit)) is not None:
            return _finished(audit, listed)
    except (ValueError, KeyError, TypeError, AttributeError):
        damaged.append(audit.name("manifest.json"))
    sets: tuple[FeatureSet, ...] = ()
    rows: list[dict[str, Any]] = []
    try:
        sets = tuple(sorted(set(feature_sets(audit).values())))
    except FileNotFoundError:
        missing.append(audit.name("audit.yaml"))
    except Damaged:
        damaged.append(audit.name("audit.yaml"))
    try:
        rows = read_plan(audit)
    except FileNotFoundError:
        pass  # the driver was killed before it wrote the plan
    except Damaged:
        damaged.append(audit.name("plan.parquet"))
    parts = {(features, row["shard"]): None for features in sets for row in rows}
    return Contents(audit, sets, {}, parts, False, tuple(missing), tuple(damaged))


def _finished(audit: Audit, listed: Mapping[str, Any]) -> Contents:
    files = {audit.name(name): (mark["size"], mark["sha256"]) for name, mark in listed["files"].items()}
    parts = dict(_listed_part(part) for part in listed["parts"])
    sets = tuple(sorted(map(FeatureSet, set(listed["settings"]["fingerprints"].values()))))
    return Contents(audit, sets, files, parts, True)


def _listed_part(part: Mapping[str, Any]) -> tuple[Key, Checksum]:
    file = feature_file(part["name"])
    if file is None or (file.kind, file.stem) != (PART, part["shard"]):
        raise ValueError(f"{part['name']} is no part of shard {part['shard']}")
    return (file.features, file.stem), (part["size"], part["sha256"])
