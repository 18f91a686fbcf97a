"""What is wrong with audits and the features they name: every file against what was written down about it.

A part is held against its record, the files and parts of a finished audit against its manifest, a Gram against its own
checksum, a feature set against its name. Of a record, who computed it and in how long cannot be checked.

What an audit says there is: its files, and the features it names.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from concept_trak.store.grams import read_gram
from concept_trak.store.identity import fingerprint
from concept_trak.store.manifest import Audit, fingerprints, read_manifest, read_plan
from concept_trak.store.part import Damaged
from concept_trak.store.records import Record, part_name, read_record, record_name, record_of
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
    """A shard as it lies on storage. `found` is the record that its part would get; None: no part, or a damaged one."""

    recorded: bool
    record: Record | None
    mark: Checksum | None
    found: Record | None


def verify_audits(audits: Sequence[Audit], only: Collection[str] | None = None) -> Iterator[Finding]:
    """A finding for every file of the audits and of the features they name, `sound` ones too; each file is read once.

    In an unfinished audit a shard that is not done is no finding, nor is a part whose record is still to be derived.
    `only` restricts it to these names.
    """
    states: dict[Key, StoredShard] = {}
    sets: set[str] = set()
    told: set[Finding] = set()
    for audit in audits:
        said = contents_of(audit)
        for finding in _findings(said, states, sets, only):
            if finding not in told:
                told.add(finding)
                yield finding


Key = tuple[str, str]  # a part: fingerprint, shard


@dataclass(frozen=True)
class Contents:
    """Files and parts by name, with their marks once the audit is finished; and what of its own files is unreadable."""

    audit: Audit
    fingerprints: tuple[str, ...] = ()
    files: Mapping[str, Checksum] = field(default_factory=dict)
    parts: Mapping[Key, Checksum | None] = field(default_factory=dict)
    finished: bool = False
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def _findings(
    said: Contents, states: dict[Key, StoredShard], sets: set[str], only: Collection[str] | None
) -> Iterator[Finding]:
    store = said.audit.store

    def asked(*names: str) -> bool:
        return only is None or any(name in only for name in names)

    yield from (Finding(name, MISSING) for name in said.missing)
    yield from (Finding(name, ALTERED) for name in said.damaged)
    with ThreadPoolExecutor(READERS) as readers:
        files = [name for name in said.files if asked(name)]
        yield from readers.map(lambda name: _file(store, name, said.files[name]), files)
        keys = [key for key in _present(said) if asked(part_name(*key), record_name(*key))]
        fresh = readers.map(lambda key: _state(store, key), [key for key in keys if key not in states])
        for key in keys:
            states[key] = states[key] if key in states else next(fresh)
            yield from _judged(key, states[key], said)
        for fp in (fp for fp in said.fingerprints if fp not in sets):
            sets.add(fp)
            yield from filter(lambda finding: asked(finding.name), [_feature_set(store, fp)])
            grams = filter(asked, store.names(f"features/{fp}/grams"))
            yield from filter(None, readers.map(lambda name: _gram(store, name), grams))


def _present(said: Contents) -> list[Key]:
    """The parts to look at: all that a manifest lists, else those of which something stands in the store."""
    if said.finished:
        return list(said.parts)
    standing = {name for fp in said.fingerprints for name in said.audit.store.names(f"features/{fp}")}
    return [key for key in said.parts if not standing.isdisjoint((part_name(*key), record_name(*key)))]


def _state(store: Store, key: Key) -> StoredShard:
    """The record is read first: a part may be committed in between, and its record never stands alone."""
    record, recorded = None, True
    try:
        record = read_record(store, *key)
    except FileNotFoundError:
        recorded = False
    except ValueError:
        pass
    try:
        data = store.read(part_name(*key))
    except FileNotFoundError:
        return StoredShard(recorded, record, None, None)
    try:
        found = record_of(data, *key, part_name(*key))
    except ValueError:
        found = None
    return StoredShard(recorded, record, _mark(data), found)


def _judged(key: Key, state: StoredShard, said: Contents) -> Iterator[Finding]:
    """One part against its record, and both against the manifest.

    Where part and record disagree, the manifest decides; without one, or when it agrees with neither, the part counts
    as the altered one, because computing it again is always right.
    """
    part, record, listed = part_name(*key), record_name(*key), said.parts[key]
    if state.mark is None:
        yield Finding(record, LONE_RECORD) if state.recorded else Finding(part, MISSING)
        return
    written = (state.record.bytes, state.record.sha256) if state.record else None
    known = [mark for mark in (written, listed) if mark is not None]
    facts = replace(state.record, seconds=0.0, attempt=0, host="") if state.record else None
    broken = state.found is None or (known and state.mark not in known)
    if broken:
        yield Finding(part, TRUNCATED if known and state.mark[0] < known[0][0] else ALTERED)
    elif not state.recorded and said.finished:
        yield Finding(part, LONE_PART)
    elif listed not in (None, state.mark):
        yield Finding(part, RECOMPUTED, said.audit.id)
    else:
        yield Finding(part, SOUND)
    if state.recorded and (facts is None or (not broken and facts != state.found)):
        yield Finding(record, ALTERED)


def _file(store: Store, name: str, listed: Checksum) -> Finding:
    try:
        mark = _mark(store.read(name))
    except FileNotFoundError:
        return Finding(name, MISSING)
    if mark == listed:
        return Finding(name, SOUND)
    return Finding(name, TRUNCATED if mark[0] < listed[0] else ALTERED)


def _feature_set(store: Store, fp: str) -> Finding:
    name = f"features/{fp}/feature_set.json"
    try:
        same = fingerprint(json.loads(store.read(name))["settings"]) == fp
    except FileNotFoundError:
        return Finding(name, MISSING)
    except (ValueError, KeyError, TypeError):
        same = False
    return Finding(name, SOUND if same else ALTERED)


def _gram(store: Store, name: str) -> Finding | None:
    """None for one that is gone since it was listed: a missing Gram is no damage, it is summed when it is needed."""
    _, fp, _, file = name.split("/")
    try:
        read_gram(store, fp, file.removesuffix(".safetensors"))
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
    sets: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = []
    try:
        sets = fingerprints(audit)
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
    parts = {(fp, row["shard"]): None for fp in sets for row in rows}
    return Contents(audit, sets, {}, parts, False, tuple(missing), tuple(damaged))


def _finished(audit: Audit, listed: Mapping[str, Any]) -> Contents:
    files = {audit.name(name): (mark["size"], mark["sha256"]) for name, mark in listed["files"].items()}
    parts = {(part["name"].split("/")[1], part["shard"]): (part["size"], part["sha256"]) for part in listed["parts"]}
    return Contents(audit, tuple(sorted(set(listed["settings"]["fingerprints"].values()))), files, parts, True)
