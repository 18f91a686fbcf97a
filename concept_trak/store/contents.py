"""What an audit says that it consists of: its own files, and the features that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from concept_trak.store.identity import PART, FeatureSet, feature_file
from concept_trak.store.manifest import Audit, feature_sets, read_manifest, read_plan
from concept_trak.store.part import Damaged

Checksum = tuple[int, str]  # bytes of a file: how many, and their sha256
Key = tuple[FeatureSet, str]  # a part: its features and its shard


@dataclass(frozen=True)
class Contents:
    """What an audit says that it consists of.

    Attributes:
        files: the audit's own files once it is finished, with their checksums.
        parts: the parts; with their checksums once the audit is finished.
        plan: the rows of its plan; none where the plan cannot be read.
        missing, damaged: of the files that say so, those that are gone or cannot be read.
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
    """From the manifest; as long as there is none that can be read, from the settings and the plan."""
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
