"""What an audit says there is: its files, and the features it names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from concept_trak.store.manifest import Audit, manifest
from concept_trak.store.part import Damaged

Key = tuple[str, str]  # a part: fingerprint, shard
Mark = tuple[int, str]  # bytes of a file: how many, and their sha256


@dataclass(frozen=True)
class Claim:
    """Files and parts by name, with their marks once the audit is finished; and what of its own files is unreadable."""

    audit: Audit
    fingerprints: tuple[str, ...] = ()
    files: Mapping[str, Mark] = field(default_factory=dict)
    parts: Mapping[Key, Mark | None] = field(default_factory=dict)
    finished: bool = False
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def claim(audit: Audit) -> Claim:
    """From the manifest; as long as there is none that can be read, from the configuration and the plan."""
    missing, damaged = [], []
    try:
        if (listed := manifest(audit)) is not None:
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
        rows = plan(audit) or []
    except Damaged:
        damaged.append(audit.name("plan.parquet"))
    parts = {(fp, row["shard"]): None for fp in sets for row in rows}
    return Claim(audit, sets, {}, parts, False, tuple(missing), tuple(damaged))


def fingerprints(audit: Audit) -> tuple[str, ...]:
    """The feature sets an audit was begun with. Absent: FileNotFoundError. Raises Damaged, naming the file."""
    name = audit.name("audit.yaml")
    data = audit.store.read(name)
    try:
        return tuple(sorted({str(fp) for fp in yaml.safe_load(data)["fingerprints"].values()}))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise Damaged(f"{audit.store.uri}/{name} is damaged: {type(error).__name__}: {error}") from error


def plan(audit: Audit) -> list[dict[str, Any]] | None:
    """The shards an audit was begun with; None if it was killed before it wrote them. Raises Damaged."""
    name = audit.name("plan.parquet")
    try:
        data = audit.store.read(name)
    except FileNotFoundError:
        return None
    try:
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"{audit.store.uri}/{name} is damaged: {error}") from error


def _finished(audit: Audit, listed: Mapping[str, Any]) -> Claim:
    files = {audit.name(name): (mark["size"], mark["sha256"]) for name, mark in listed["files"].items()}
    parts = {(part["name"].split("/")[1], part["shard"]): (part["size"], part["sha256"]) for part in listed["parts"]}
    return Claim(audit, tuple(sorted(set(listed["settings"]["fingerprints"].values()))), files, parts, True)
