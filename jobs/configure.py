"""From `conf/` and the command line to one frozen dataclass, or one message that says what to change.

Hydra composes plain values; the dataclasses of the library check them. Their types are the schema, so there is no
second table: the groups of `method` are made from `METHODS`.

Audits named after the tick of a schedule, so that a tick is one audit however often, and by whom, it is begun.
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_origin

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from concept_trak.attribution.method import METHODS, RECOMMENDED, method_settings
from concept_trak.config import AuditConfig, ModelConfig, absolute, build
from concept_trak.store.store import Store

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
        node = {row: OmegaConf.create(method_settings(METHODS[row]))}
        store.store(group="method", name=name, node=node, package="methods")


def _defaults(schema: type) -> Any:
    return OmegaConf.create(dataclasses.asdict(schema()))


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


# The words of cron, and what a tick of each is called; names sort in the order of time.
TICKS = {"@hourly": "%Y-%m-%dT%H", "@daily": "%Y-%m-%d", "@weekly": "%G-W%V", "@monthly": "%Y-%m"}


def named(audit: str, now: datetime) -> str:
    """`@weekly` as the tick that `now` (UTC) is in, 2026-W48; another name as it is.

    Raises:
        ValueError: an unknown word of this kind.
    """
    if not audit.startswith("@"):
        return audit
    if audit not in TICKS:
        raise ValueError(f"audit={audit!r} is no schedule; expected one of: {', '.join(TICKS)}, or a name")
    return now.strftime(TICKS[audit])


def located(config: AuditConfig) -> AuditConfig:
    """The same configuration with paths that mean the same everywhere, and with a name.

    Raises:
        ValueError: a relative path or an undeclared local store on a cluster of several machines; `memory` with
        workers elsewhere.
    """
    kind = config.cluster.kind
    if kind == "ray":
        for key, value in (("store", config.store), ("data.uri", config.data.uri), *_of_model(config.model)):
            if value and "://" not in value and not Path(value).is_absolute():
                raise ValueError(f"{key}={value!r} is another folder on each node; give an absolute path or a URL")
        if Store(config.store).scheme == "file" and not config.cluster.shared_store:
            raise ValueError(
                f"store={config.store!r} is a folder: if every node sees the same one, say cluster.shared_store=true; "
                "else use an object store such as s3://bucket/prefix"
            )
    if config.store.startswith("memory://") and kind != "serial":
        raise ValueError(f"store={config.store!r} lives in one process; use it with cluster=serial, or choose a folder")
    now = datetime.now(UTC)
    audit = named(config.audit, now) or now.strftime("%Y%m%dT%H%M%SZ")
    model, data = (
        _placed(config.model),
        replace(config.data, uri=absolute(config.data.uri)),
    )
    return replace(config, audit=audit, store=absolute(config.store), model=model, data=data)


def _of_model(model: ModelConfig) -> list[tuple[str, str]]:
    """(key, path) of everything that the model is read from."""
    return [
        *((f"model.{key}", getattr(model, key)) for key in ("path", "weights", "lora")),
        *(("model.embeddings", path) for path in model.embeddings),
    ]


def _placed(model: ModelConfig) -> ModelConfig:
    more = {key: absolute(value) for key in ("weights", "lora") if (value := getattr(model, key))}
    embeddings = tuple(absolute(path) for path in model.embeddings)
    return replace(model, path=absolute(model.path), embeddings=embeddings, **more)
