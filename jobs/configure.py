"""From `conf/` and the command line to one frozen dataclass, or one message that says what to change.

Hydra composes plain values; the dataclasses of the library check them. Their types are the schema, so there is no
second table: the groups of `method` are made from `METHODS`.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from concept_trak.method import METHODS, RECOMMENDED, describe

CONF = Path(__file__).resolve().parent.parent / "conf"
LEFT_AT_HOME = ("/outputs", "/results", "/assets/benchmark", ".git", ".venv")
"""What of a checkout is never shipped to a cluster: every job would carry it through the head to every node."""
T = TypeVar("T")


def main(schema: type[T], default: str, run: Callable[[T], int]) -> None:
    """Compose, check, run, and exit with its code; the user's mistakes are one message and exit 2."""
    try:
        code = run(configure(schema, default, sys.argv[1:]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def configure(schema: type[T], default: str, arguments: Sequence[str]) -> T:
    """`arguments` as on the command line: `--config-name demo`, then `key=value` overrides of Hydra's grammar.

    Raises:
        ValueError: naming the key, what was expected, and the nearest key there is.
    """
    name, overrides = _arguments(arguments, default)
    overrides = [_settable(schema, override) for override in overrides]
    _register(schema)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            values = OmegaConf.to_container(compose(config_name=name, overrides=overrides), resolve=True)
        except OverrideParseException as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"{error.override} cannot be read ({why}); quote special characters: key=\"'value'\""
            ) from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(_explained(str(error), overrides, name)) from None
    return build(schema, values)


def build(schema: type[T], values: Any) -> T:
    """The dataclass from plain values; unknown keys and wrong types at any depth are refused."""
    _strict(schema)
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(schema, e) for e in error.errors())) from None


def _arguments(arguments: Sequence[str], default: str) -> tuple[str, list[str]]:
    rest, name = list(arguments), default
    for flag in ("--config-name", "-cn"):
        for i, argument in enumerate(rest):
            if argument == flag and i + 1 < len(rest):
                name = rest[i + 1]
                del rest[i : i + 2]
                break
            if argument.startswith(f"{flag}="):
                name = rest.pop(i).partition("=")[2]
                break
    if wrong := [a for a in rest if a.startswith("-") or "=" not in a]:
        raise ValueError(
            f"{wrong[0]!r} is not understood; expected key=value, or --config-name NAME with NAME in conf/"
        )
    return name, rest


def _settable(schema: type, override: str) -> str:
    """Hydra adds to a mapping only where told to, and `variants={...}` gives a whole one."""
    mappings = {f.name for f in dataclasses.fields(schema) if get_origin(f.type) is dict}
    return f"++{override}" if override.partition("=")[0] in mappings else override


def _register(schema: type) -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=_defaults(schema))
    for name, row in {**{name: name for name in METHODS}, "recommended": RECOMMENDED}.items():
        node = {row: OmegaConf.create(describe(METHODS[row]))}
        store.store(group="method", name=name, node=node, package="methods")


def _defaults(schema: type) -> Any:
    return OmegaConf.create(dataclasses.asdict(schema()))


def _strict(schema: type, seen: set[type] | None = None) -> None:
    """Tell pydantic to refuse unknown keys in a dataclass and in every dataclass it holds."""
    seen = set() if seen is None else seen
    if schema in seen:
        return
    seen.add(schema)
    schema.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    for field in dataclasses.fields(schema):
        for inner in (field.type, *get_args(field.type)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                _strict(inner, seen)


def _explained(message: str, overrides: Sequence[str], name: str) -> str:
    """Hydra's complaint in our words: the key, and the nearest key there is."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if f"'{key}'" in message and "override" in message:
            near = difflib.get_close_matches(key, _keys(name), 1, 0.5)
            return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
    if unknown := re.search(r"Could not (?:find|load) '([^/']+)/([^']+)'", message):
        group, choice = unknown.groups()
        known = GlobalHydra.instance().config_loader().get_group_options(group)
        return f"{group}={choice} is not known; expected one of: {', '.join(known)}"
    return message.partition("Config search path")[0].strip().replace("\n\t", " ").replace("\n", " ")


def _keys(name: str) -> list[str]:
    return list(_dotted(OmegaConf.to_container(compose(config_name=name), resolve=True)))


def _dotted(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")


def _sentence(schema: type, error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        *parents, wrong = error["loc"]
        known = [f.name for f in dataclasses.fields(_at(schema, parents))]
        near = difflib.get_close_matches(str(wrong), known, 1, 0.5)
        return f"unknown key {place}" + (f" (did you mean {near[0]}?)" if near else f"; known: {', '.join(known)}")
    if error["type"] == "missing":
        return f"{place} is missing; give it a value"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{place}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _at(schema: type, path: Sequence[Any]) -> type:
    """The dataclass that stands at a path of keys and list positions."""
    for part in path:
        if isinstance(part, int) or part not in {f.name for f in dataclasses.fields(schema)}:
            continue  # a position in a list, or a name in a mapping: the dataclass was entered with its field
        kind = next(f.type for f in dataclasses.fields(schema) if f.name == part)
        inner = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and dataclasses.is_dataclass(k)]
        schema = inner[0]
    return schema


def plain_values(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values, tuples as lists: what a saved configuration holds."""
    values = OmegaConf.to_container(OmegaConf.create(dataclasses.asdict(config)))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def absolute(path: str) -> str:
    """URLs as they are, relative paths from here."""
    return path if "://" in path else str(Path(path).absolute())
