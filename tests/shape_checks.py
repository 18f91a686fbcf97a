"""Check the shapes that signatures and fields declare, wherever a test passes through them.

jaxtyping's own import hook wraps every function, with arrays or without, and checks the parameters of each call twice:
a fifth of the time of the tests of whole jobs. Here only what declares an array is wrapped, and a call is checked once.
"""

import ast
import functools
import importlib.abc
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

PACKAGE = "concept_trak"
DECORATOR = f"__import__({__name__!r}, fromlist=['checked']).checked"

Definition = type | Callable[..., typing.Any]


class ShapeChecks(importlib.abc.MetaPathFinder):
    """Finds the modules of the library, which are then loaded with checks."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


class CheckedLoader(SourceFileLoader):
    """Compiles a module with a check at each function and class that declares a shape."""

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError("no bytecode is read or written: it would have the checks, or lack them")

    def source_to_code(self, data, path, *, _optimize=-1):
        module = ast.parse(data, path)
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                node.decorator_list.append(_decorator(node))
            elif isinstance(node, ast.ClassDef):
                node.decorator_list.insert(0, _decorator(node))  # outside of @dataclass
        return super().source_to_code(module, path, _optimize=_optimize)


def _decorator(node: ast.stmt) -> ast.expr:
    expression = ast.parse(DECORATOR, mode="eval").body
    for part in ast.walk(expression):
        ast.copy_location(part, node)
    return expression


def checked(definition: Definition) -> Definition:
    """The function or class with its shapes checked; the same one if it declares none."""
    if not declares_shapes(definition):
        return definition
    if isinstance(definition, type):
        return jaxtyped(typechecker=beartype)(definition)
    return _in_context(beartype(definition))


def _in_context(function: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
    """Each call gives sizes to the names of dimensions anew."""

    @functools.wraps(function)
    def in_context(*args: object, **named: object) -> typing.Any:
        with jaxtyped("context"):
            return function(*args, **named)

    return in_context


def declares_shapes(definition: Definition) -> bool:
    return any(map(_has_shape, inspect.get_annotations(definition).values()))


def _has_shape(hint: object) -> bool:
    """Whether a type is an array type of jaxtyping, or has one in it."""
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(_has_shape, typing.get_args(hint)))


def install() -> None:
    """Check each module of the library that is imported from now on."""
    assert PACKAGE not in sys.modules, "the library is imported already, without checks"
    sys.meta_path.insert(0, ShapeChecks())
