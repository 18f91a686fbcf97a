"""`--help` of every verb, made from the docstrings of its module and of the fields of its configuration."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, get_args

WIDTH = 100


def help_text(verb: Callable[..., int], schemas: Sequence[type], default: str) -> str:
    """The docstring of the verb's module, then every key by group with its default and its meaning."""
    lines = [
        (sys.modules[verb.__module__].__doc__ or "").strip(),
        "",
        f"Keys (defaults of conf/{default}.yaml apply first):",
    ]
    for schema in schemas:
        lines += _group(schema, "", dataclasses.asdict(schema()))
    return "\n".join(lines)


def _group(schema: type, prefix: str, defaults: dict[str, Any]) -> Iterator[str]:
    """The lines for the keys of a dataclass, then for those of each dataclass among its fields."""
    meanings, nested = field_docstrings(schema), []
    yield ""
    yield f"{prefix.rstrip('.') or 'top level'}{_purpose(schema)}"
    for field in dataclasses.fields(schema):
        inner = _dataclass_in(field.type)
        if inner is not None and isinstance(defaults.get(field.name), dict) and inner is field.type:
            nested.append((inner, f"{prefix}{field.name}.", defaults[field.name]))
            continue
        yield f"  {prefix}{field.name}={_value_text(defaults.get(field.name))}"
        yield from textwrap.wrap(
            meanings.get(field.name, ""), WIDTH, initial_indent="      ", subsequent_indent="      "
        )
    for inner, inner_prefix, values in nested:
        yield from _group(inner, inner_prefix, values)


def _purpose(schema: type) -> str:
    """The first line of a dataclass's docstring; "" if it has none, for which `dataclass` sets its signature."""
    text = (inspect.getdoc(schema) or "").partition("\n")[0]
    return "" if not text or text.startswith(f"{schema.__name__}(") else f": {text}"


def _dataclass_in(kind: Any) -> type | None:
    candidates = (kind, *get_args(kind))
    return next((k for k in candidates if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def _value_text(value: Any) -> str:
    match value:
        case "" | () | {} | []:
            return ""
        case tuple() | list():
            return f"[{','.join(map(_value_text, value))}]"
        case bool() | None:
            return str(value).lower()
    return str(value)


@cache
def field_docstrings(schema: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of its base classes, by the field's name."""
    meanings: dict[str, str] = {}
    for base in reversed([c for c in schema.__mro__ if dataclasses.is_dataclass(c)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=meaning)):
                    meanings[name] = " ".join(str(meaning).split())
    return meanings
