"""The tests run the library with its shapes checked: all that it declares."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator

import jaxtyping
import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation

import concept_trak
from concept_trak.attribution.ranking import scores
from tests import shape_checks

SOURCE = """
from dataclasses import dataclass
from jaxtyping import Float
import numpy as np
Pair = Float[np.ndarray, "2"]
def sums(a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"] | None) -> Pair:
    return np.array([a.sum(), 0.0 if b is None else b.sum()][: len(a)])
def length(a: list) -> int:
    return len(a)
@dataclass(frozen=True)
class Point:
    place: Pair
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> dict[str, typing.Any]:
    """The names of a module that was loaded with checks."""
    path = tmp_path_factory.mktemp("checks") / "source.py"
    path.write_text(SOURCE)
    loader = shape_checks.CheckedLoader("source", str(path))
    namespace: dict[str, typing.Any] = {"__name__": "source"}
    exec(loader.get_code("source"), namespace)
    assert not list(path.parent.glob("__pycache__")), "the checks were kept as bytecode"
    return namespace


def test_a_shape_that_does_not_fit_is_refused(checked):
    np.testing.assert_array_equal(checked["sums"](np.ones(3), np.ones(3)), [3, 3])
    with pytest.raises(BeartypeCallHintParamViolation, match=r"source\.sums\(\) parameter b="):
        checked["sums"](np.ones(3), np.ones(4))
    with pytest.raises(BeartypeCallHintReturnViolation, match=r"source\.sums\(\) return "):
        checked["sums"](np.ones(1), None)
    with pytest.raises(jaxtyping.TypeCheckError):
        checked["Point"](np.ones(3))


def test_what_has_no_shape_is_left_as_it_is(checked):
    assert not hasattr(checked["length"], "__wrapped__")


def test_the_library_is_checked():
    with pytest.raises(BeartypeCallHintParamViolation, match="scores"):
        scores(torch.ones(3, 4), torch.ones(2), torch.ones(1, 4))


def test_every_function_of_the_library_that_declares_a_shape_is_wrapped():
    """Also methods, properties and what stands below other decorators."""
    declared = [f for f in functions() if shape_checks.declares_shapes(f)]
    assert len(declared) > 200, "hardly any shapes: the search is broken"
    missing = [f"{f.__module__}.{f.__qualname__}" for f in declared if not hasattr(f, "__wrapped__")]
    assert not missing, f"tests/shape_checks.py overlooks {missing}"


def functions() -> Iterator[Callable[..., typing.Any]]:
    """Every function and method of every module of the library."""
    for module in pkgutil.walk_packages(concept_trak.__path__, "concept_trak."):
        for holder in vars(importlib.import_module(module.name)).values():
            for member in [holder, *(vars(holder).values() if inspect.isclass(holder) else ())]:
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and function.__module__ == module.name:
                    yield function
