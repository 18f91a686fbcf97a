"""The files of an audit: its own, and the features that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from concept_trak.store.identity import PART, FeatureSet, feature_file
from concept_trak.store.manifest import Audit, feature_sets, read_manifest, read_plan
from concept_trak.store.part import Damaged

Checksum = tuple[int, str]  # the number of bytes of a file, and their sha256
Key = tuple[FeatureSet, str]  # a part: its features and its shard


@dataclass(frozen=True)
class Contents:
    """The files that an audit names.

    Attributes:
        files: the audit's own files, with their checksums; empty until it is finished.
        parts: the parts, with their checksums once the audit is finished.
        plan: the rows of its plan; empty if the plan cannot be read.
        missing, damaged: the files that should list the others, but are gone or cannot be read.
    """

    audit: Audit
    features: tuple[FeatureSet, ...] = ()
    files: Mapping[str, Checksum] = field(default_factory=dict)
    parts: Mapping[Key, Checksum | None] = field(default_factory=dict)
    plan: Sequence[Mapping[str, Any]] = ()
    finished: bool = False
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def contents_of(audit: Audit) -> Contents:
    """The files by the manifest, or by the settings and the plan if there is no readable manifest."""
    missing, damaged = [], []
    plan: list[dict[str, Any]] = []
    sets: tuple[FeatureSet, ...] = ()
    try:
        plan = read_plan(audit)
    except FileNotFoundError:
        pass  # the driver was killed before it wrote the plan; a manifest that lists it finds it missing
    except Damaged:
        damaged.append(audit.name("plan.parquet"))
    try:
        if (manifest := read_manifest(audit)) is not None:
            return _finished(audit, manifest, plan)
    except Damaged:
        damaged.append(audit.name("manifest.json"))
    try:
        sets = tuple(sorted(set(feature_sets(audit).values())))
    except FileNotFoundError:
        missing.append(audit.name("audit.yaml"))
    except Damaged:
        damaged.append(audit.name("audit.yaml"))
    parts = {(features, row["shard"]): None for features in sets for row in plan}
    return Contents(
        audit=audit,
        features=sets,
        files={},
        parts=parts,
        plan=plan,
        finished=False,
        missing=tuple(missing),
        damaged=tuple(damaged),
    )


def _finished(audit: Audit, manifest: Mapping[str, Any], plan: Sequence[Mapping[str, Any]]) -> Contents:
    files = {audit.name(name): (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    parts = dict(_listed_part(part) for part in manifest["parts"])
    sets = tuple(sorted({features for features, _ in parts}))
    return Contents(audit=audit, features=sets, files=files, parts=parts, plan=plan, finished=True)


def _listed_part(part: Mapping[str, Any]) -> tuple[Key, Checksum]:
    file = feature_file(part["name"])
    if file is None or (file.kind, file.stem) != (PART, part["shard"]):
        raise Damaged(f"{part['name']} is no part of shard {part['shard']}")
    return (file.features, file.stem), (part["size"], part["sha256"])
