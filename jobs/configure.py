"""Reads `conf/` and the command line into frozen dataclasses, or raises one message with what to change.

Hydra composes plain values, and the dataclasses of the library check them. Their types are the only schema; the group
`method` is made from `METHODS`.
"""

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from concept_trak import UserError
from concept_trak.attribution.method import METHODS, RECOMMENDED, method_settings
from concept_trak.config import build
from concept_trak.data.text import encodable, escape_output, one_line, read_list
from concept_trak.store.secrets import redacted
from jobs.exit_codes import ended
from jobs.help import help_text

CONF = Path(__file__).resolve().parent.parent / "conf"
NOT_SHIPPED = ("/outputs", "/results", "/assets/benchmark", ".git", ".venv")
"""Paths of a checkout that are not sent to a cluster, because every job would copy them through the head to every node.
Files with secrets are never sent (`cluster.source.NEVER_SHIPPED`)."""
T = TypeVar("T")


def main(verb: Callable[..., int], default: str, *schemas: type[Any]) -> None:
    """Compose the configuration, run the verb, and exit with its code.

    Args:
        verb: takes one instance of each schema and returns an exit code.
        default: the configuration's name in `conf/`.
        schemas: the dataclasses whose fields are the keys of the command line.
    """
    escape_output()
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        print(help_text(verb, schemas, default))
        sys.exit(0)
    sys.exit(ended(lambda: verb(*configure_all(schemas, default, arguments))))


def configure(schema: type[T], default: str, arguments: Sequence[str]) -> T:
    """One dataclass from the command line; see `configure_all`."""
    return configure_all((schema,), default, arguments)[0]


def configure_all(schemas: Sequence[type[Any]], default: str, arguments: Sequence[str]) -> tuple[Any, ...]:
    """An instance of each schema.

    Args:
        schemas: dataclasses with distinct fields; every top-level key belongs to one of them.
        default: the configuration's name if there is no `--config-name`.
        arguments: as on the command line: `--config-name demo`, then `key=value` overrides in Hydra's grammar.

    Raises:
        UserError: a key or a value is wrong; the message names the key, the expected value and the nearest known key.
    """
    name, overrides = _arguments(arguments, default)
    overrides = [_settable(schemas, override) for override in overrides]
    _register(schemas)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            values = OmegaConf.to_container(compose(config_name=name, overrides=overrides), resolve=False)
        except OverrideParseException as error:
            why = str(error).partition("\n")[0]
            remedy = "quote special characters: key=\"'value'\""
            if re.search(r"[{,]\s*[\"']", str(error.override)):
                remedy = "keys of a mapping have no quotes: concepts=[{name: red, prompt: a red square}]"
            raise UserError(f"{redacted(str(error.override))} cannot be read ({why}); {remedy}") from None
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_explained(str(error), overrides, name)) from None
        except (YAMLError, ValueError, RecursionError) as error:  # of a file of conf/, or of a value for a group
            raise UserError(
                f"--config-name {name} with {' '.join(map(redacted, overrides))[:200] or 'no setting'} cannot be read "
                f"({one_line(error)[:500]}); expected YAML in UTF-8, and one value for each key"
            ) from None
    assert isinstance(values, dict)
    if isinstance(concepts := values.get("concepts"), str):
        values["concepts"] = read_list(concepts, "concepts")
    _require_values(values)
    return tuple(build(schema, own) for schema, own in zip(schemas, _divided(schemas, values), strict=True))


def configuration_files(default: str, arguments: Sequence[str]) -> list[str]:
    """The files that `configure_all` reads for these accepted arguments, as `conf/model/demo.yaml`."""
    name, overrides = _arguments(arguments, default)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        defaults = loader.compute_defaults_list(name, overrides, RunMode.RUN).defaults
    lists = [o.partition("=")[2].strip("'\"") for o in overrides if o.startswith("concepts=") and "[" not in o]
    return [f"conf/{d.config_path}.yaml" for d in defaults if (CONF / f"{d.config_path}.yaml").is_file()] + lists


def _require_values(values: Any, key: str = "") -> None:
    """Refuse NaN, text that cannot be encoded, and `${...}`, which would read the environment or other keys.

    Raises:
        UserError: a value is refused; the message names its key.
    """
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for name, value in items:
        _require_values(value, f"{key}.{name}" if key else str(name))
    if isinstance(values, float) and math.isnan(values):
        raise UserError(f"{key} is not a number (nan); expected a number")
    if not encodable(f"{key}{values}" if isinstance(values, str) else key):
        raise UserError(f"{key} is not Unicode text and cannot be written to a file; write it as UTF-8")
    if isinstance(values, str) and "${" in values:
        raise UserError(f"{key}={values!r} is an expression; give its value, which the shell can insert")


def _divided(schemas: Sequence[type], values: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The values of each schema's fields. The first schema also gets unknown keys, which it refuses."""
    names = [{f.name for f in dataclasses.fields(schema)} for schema in schemas]
    fields = set[str]().union(*names)
    own = [{key: value for key, value in values.items() if key in mine} for mine in names]
    own[0] |= {key: value for key, value in values.items() if key not in fields}
    return own


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
    if not (CONF / f"{name.removesuffix('.yaml')}.yaml").is_file() or {"", ".."} & set(name.split("/")):
        names = ", ".join(sorted(path.stem for path in CONF.glob("*.yaml")))
        raise UserError(f"there is no configuration {name!r} in conf/; expected one of: {names}")
    if wrong := [a for a in rest if a.startswith("-") or "=" not in a]:
        raise UserError(f"{wrong[0]!r} is not a setting; expected key=value, or --config-name NAME with NAME in conf/")
    for argument in rest:
        _require_values(*reversed(argument.split("=", 1)))
    return name, rest


def _settable(schemas: Sequence[type], override: str) -> str:
    """The override with `++` if its key is a whole mapping, because Hydra adds keys to a mapping only with `++`."""
    mappings = {f.name for schema in schemas for f in dataclasses.fields(schema) if get_origin(f.type) is dict}
    return f"++{override}" if override.partition("=")[0] in mappings else override


def _register(schemas: Sequence[type]) -> None:
    store = ConfigStore.instance()
    defaults = {key: value for schema in schemas for key, value in dataclasses.asdict(schema()).items()}
    store.store(name="schema", node=defaults)
    store.repo.pop("method", None)  # a group only where whole rows are chosen; to jobs.ask the key is a name
    rows = {**{name: name for name in METHODS}, "recommended": RECOMMENDED} if "methods" in defaults else {}
    for name, row in rows.items():
        store.store(group="method", name=name, node={row: method_settings(METHODS[row])}, package="methods")


def _explained(message: str, overrides: Sequence[str], name: str) -> str:
    """Hydra's error as a message of ours: the key, and the nearest known key."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if f"'{key}'" in message and "override" in message:
            near = difflib.get_close_matches(key, _keys(name), 1, 0.5)
            return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
    if "multirun" in message:
        return (
            f"{' '.join(map(redacted, overrides))[:200]}: a key has several values; give it one, or a list: key=[a, b]"
        )
    if unknown := re.search(r"Could not (?:find|load) '([^/']+)/([^']+)'", message):
        group, choice = unknown.groups()
        choices = GlobalHydra.instance().config_loader().get_group_options(group)
        return f"{group}={choice} is not known; expected one of: {', '.join(choices)}"
    return message.partition("Config search path")[0].strip().replace("\n\t", " ").replace("\n", " ")


def _keys(name: str) -> list[str]:
    return list(_dotted(OmegaConf.to_container(compose(config_name=name), resolve=False)))


def _dotted(values: Any, prefix: str = "") -> Iterator[str]:
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")
