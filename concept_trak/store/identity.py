"""The identity of features: the fingerprint of every setting that changes a feature's numbers."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from concept_trak import UserError
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store

PART, RECORD, RECORDS, GRAM, FEATURE_SET = "part", "record", "records", "Gram", "feature set"
"""The kinds of files below `features/<fingerprint>/`."""
FOLDERS = {"parts": (PART, ".parquet"), "commits": (RECORD, ".json"), "records": (RECORDS, ".parquet"),
           "grams": (GRAM, ".safetensors")}  # fmt: skip
UNSET = {json.dumps(value) for value in ("", None, False, 0, 0.0, [], {})}
"""Values of a setting that changes nothing. A setting that decides results and is added has one of these as its default
(tests/jobs/test_configure.py)."""


@dataclass(frozen=True, order=True)
class FeatureSet:
    """The features of one fingerprint, and where their files are.

    No other code builds a name below `features/`, and only `feature_file` parses one.
    """

    fingerprint: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "FeatureSet":
        """The feature set of these settings."""
        return cls(fingerprint(settings))

    @property
    def folder(self) -> str:
        return f"features/{self.fingerprint}"

    @property
    def settings_file(self) -> str:
        return f"{self.folder}/feature_set.json"

    @property
    def parts(self) -> str:
        """The folder of all parts."""
        return f"{self.folder}/parts"

    @property
    def records(self) -> str:
        """The folder of all records."""
        return f"{self.folder}/commits"

    @property
    def compacted(self) -> str:
        """The folder of files that hold the records of many shards."""
        return f"{self.folder}/records"

    @property
    def grams(self) -> str:
        """The folder of all Grams."""
        return f"{self.folder}/grams"

    def part(self, shard: str) -> str:
        """The file with the features of a shard."""
        return f"{self.parts}/{_file_name(shard)}.parquet"

    def record(self, shard: str) -> str:
        """The file whose existence means that a shard is done."""
        return f"{self.records}/{_file_name(shard)}.json"

    def compacted_file(self, digest: str) -> str:
        """One file with the records of many shards, named by its content."""
        return f"{self.compacted}/{_file_name(digest)}.parquet"

    def gram(self, node: str) -> str:
        """The file with the Gram of a node of the tree over all shards."""
        return f"{self.grams}/{_file_name(node)}.safetensors"


@dataclass(frozen=True)
class FeatureFile:
    """The parts of a name below `features/`. `stem` is the shard of a part or record, or the node of a Gram."""

    features: FeatureSet
    kind: str
    stem: str


def feature_file(name: str) -> FeatureFile | None:
    """The parts of a name below `features/`; None if this project did not write the file."""
    match name.split("/"):
        case ["features", fp, "feature_set.json"]:
            return FeatureFile(FeatureSet(fp), FEATURE_SET, "")
        case ["features", fp, folder, file] if folder in FOLDERS and file.endswith(FOLDERS[folder][1]):
            kind, suffix = FOLDERS[folder]
            return FeatureFile(FeatureSet(fp), kind, file.removesuffix(suffix))
    return None


def _file_name(name: str) -> str:
    assert "/" not in name, f"a file name of a feature set has no slash: {name!r}"
    return name


@dataclass(frozen=True)
class FeatureSettings:
    """The content of `feature_set.json`: the settings, and the number of rows of its shards."""

    settings: dict[str, Any]
    shard_rows: int


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The first 16 hex digits of sha256 over canonical JSON: sorted keys, no spaces, floats by repr.

    Tuples count as lists; 1 and 1.0 differ. Raises ValueError for a value that is not JSON, naming its key.
    """
    canonical = json.dumps(as_json(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def setting_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """One line per setting that differs, nested keys dotted: "projector.dim: 4096 here, 2048 there"; [] if equal.

    A setting that one side lacks equals an unset one: a version before it wrote none, and computed as without it.
    """
    sides = [dict(_leaves(as_json(side))) for side in (ours, theirs)]
    lines = []
    for key in sorted(sides[0].keys() | sides[1].keys()):
        values = [side.get(key, "nothing") for side in sides]
        if values[0] != values[1] and not ("nothing" in values and UNSET.intersection(values)):
            lines.append(f"{'.'.join(key)}: {values[0]} here, {values[1]} there")
    return lines


def open_feature_set(store: Store, settings: Mapping[str, Any], shard_rows: int) -> FeatureSettings:
    """The feature set of these settings, created if there is none. An existing one fixes `shard_rows` (rows, ≥ 1).

    Raises:
        UserError: `shard_rows` below 1, or other settings (or damage) under this fingerprint; both sides are printed.
    """
    if shard_rows < 1:
        raise UserError(f"shard_rows={shard_rows}: expected at least 1 row; aim at ten minutes of work, e.g. 1024.")
    features, ours = FeatureSet.of(settings), FeatureSettings(as_json(settings), shard_rows)
    if store.create(features.settings_file, encode_json({"settings": ours.settings, "shard_rows": shard_rows})):
        return ours
    theirs = read_feature_settings(store, features)
    if different := setting_differences(ours.settings, theirs.settings):
        raise UserError(
            f"{store.uri}/{features.settings_file} was written with other settings than its name says:"
            f" {'; '.join(different)}. Expected the same settings under one fingerprint: the file was altered, or two"
            " settings share a hash. Choose another store, or remove this feature set."
        )
    return theirs


def read_feature_settings(store: Store, features: FeatureSet) -> FeatureSettings:
    """The settings of a feature set that exists.

    Raises:
        FileNotFoundError: it has no feature_set.json.
        Damaged: the file cannot be read; the message names it.
    """
    data = store.read(features.settings_file)
    try:
        values = json.loads(data)
        if type(values["settings"]) is not dict or type(values["shard_rows"]) is not int or values["shard_rows"] < 1:
            raise TypeError("settings or shard_rows is of another type")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(
            f"{store.uri}/{features.settings_file} is damaged ({error}). Expected JSON with settings and shard_rows:"
            " restore the file, or choose another store."
        ) from error
    return FeatureSettings(values["settings"], values["shard_rows"])


def file_digest(path: str | PathLike[str]) -> str:
    """sha256 of a local file, in hex, streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_json(value: Any, key: str = "settings") -> Any:
    """The value in JSON's own types, tuples as lists. Raises ValueError, naming the key, for anything else."""
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: as_json(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise UserError(
        f"{key} is {value!r} of type {type(value).__name__}, which JSON cannot hold. Expected str, int, finite float,"
        " bool, None, or lists and string-keyed mappings of these: convert it first."
    )


def encode_json(value: Any) -> bytes:
    """The bytes of a JSON file for people: sorted keys, indented; equal values give equal bytes."""
    return (json.dumps(as_json(value), sort_keys=True, indent=2) + "\n").encode()


def _leaves(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys and JSON text of every leaf; a list is a leaf unless it holds mappings (a list of concepts)."""
    if isinstance(value, Mapping) and value:
        children = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        children = enumerate(value)
    else:
        yield key, json.dumps(value, sort_keys=True)
        return
    for name, child in children:
        yield from _leaves(child, (*key, str(name)))
