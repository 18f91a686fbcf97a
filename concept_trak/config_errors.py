"""What is wrong with the plain values of a configuration, in a sentence that names the key."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, get_args

from concept_trak import UserError


def refuse_unknown_keys(schema: type, seen: set[type] | None = None) -> None:
    """Tell pydantic to refuse unknown keys in a dataclass and in every dataclass it holds."""
    seen = set() if seen is None else seen
    if schema in seen:
        return
    seen.add(schema)
    schema.__pydantic_config__ = {"extra": "forbid", "coerce_numbers_to_str": True}  # type: ignore[attr-defined]
    for entry in dataclasses.fields(schema):
        for inner in (entry.type, *get_args(entry.type)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                refuse_unknown_keys(inner, seen)


def message_of(schema: type, error: Any) -> str:
    """A sentence about one error of pydantic: the key, and what is wrong with it.

    Args:
        schema: the dataclass that was to be built.
        error: an entry of `ValidationError.errors()`.
    """
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        *parents, wrong = error["loc"]
        names = [f.name for f in dataclasses.fields(_at(schema, parents))]
        near = difflib.get_close_matches(str(wrong), names, 1, 0.5)
        return f"unknown key {place}" + (f" (did you mean {near[0]}?)" if near else f"; known: {', '.join(names)}")
    if error["type"] == "missing":
        return f"{place} is missing; give it a value"
    if error["type"] == "value_error":
        if not isinstance(refusal := error["ctx"]["error"], UserError):
            raise refusal  # a bug in a check of ours, which pydantic takes for the user's mistake
        return str(refusal)
    return f"{place}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _at(schema: type, path: Sequence[Any]) -> type:
    """The dataclass at a path of keys and list positions."""
    for part in path:
        if isinstance(part, int) or part not in {f.name for f in dataclasses.fields(schema)}:
            continue  # a position in a list, or a name in a mapping: the dataclass was entered with its field
        kind = next(f.type for f in dataclasses.fields(schema) if f.name == part)
        inner = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and dataclasses.is_dataclass(k)]
        schema = inner[0]
    return schema
