"""Which features are the same: the fingerprint of every setting that changes a feature's numbers."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from concept_trak.store.store import Store


@dataclass(frozen=True)
class FeatureSet:
    """The features of one fingerprint, and the number of rows its shards were cut to when it was created."""

    fingerprint: str
    settings: dict
    shard_rows: int


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The first 16 hex digits of sha256 over canonical JSON: sorted keys, no spaces, floats by repr.

    Tuples count as lists; 1 and 1.0 differ. Raises ValueError for a value that is not JSON, naming its key.
    """
    canonical = json.dumps(as_json(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """One line per setting that differs, nested keys dotted: "projector.dim: 4096 here, 2048 there"; [] if equal."""
    here, there = dict(_leaves(as_json(ours))), dict(_leaves(as_json(theirs)))
    differing = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
    sides = ((".".join(key), here.get(key, "nothing"), there.get(key, "nothing")) for key in differing)
    return [f"{key}: {our_value} here, {their_value} there" for key, our_value, their_value in sides]


def open_feature_set(store: Store, settings: Mapping[str, Any], shard_rows: int) -> FeatureSet:
    """The feature set of these settings, created if there is none. An existing one fixes `shard_rows` (rows, ≥ 1).

    Raises:
        ValueError: `shard_rows` below 1, or other settings (or damage) under this fingerprint; both sides are printed.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows={shard_rows}: expected at least 1 row; aim at ten minutes of work, e.g. 1024.")
    ours = FeatureSet(fingerprint(settings), as_json(settings), shard_rows)
    name = f"features/{ours.fingerprint}/feature_set.json"
    if store.create(name, encode_json({"settings": ours.settings, "shard_rows": shard_rows})):
        return ours
    theirs = _decode(store.read(name), f"{store.uri}/{name}")
    if different := differences(ours.settings, theirs["settings"]):
        raise ValueError(
            f"{store.uri}/{name} was written with other settings than its name says: {'; '.join(different)}. Expected"
            " the same settings under one fingerprint: the file was altered, or two settings share a hash. Choose"
            " another store, or remove this feature set."
        )
    return FeatureSet(ours.fingerprint, ours.settings, theirs["shard_rows"])


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
    raise ValueError(
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


def _decode(data: bytes, where: str) -> dict:
    try:
        return {key: json.loads(data)[key] for key in ("settings", "shard_rows")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is damaged ({error}). Expected JSON with settings and shard_rows: restore the file, or choose"
            " another store."
        ) from error
