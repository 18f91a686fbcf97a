"""Settings that are other settings with something changed: a study's rows, and its runs.

A variant is a mapping that names the row it comes from and holds the fields that differ, nested as in the row:

    fit_at_300: {row: fit_trak, train: {times: [300]}}
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from concept_trak.method import Method, describe
from jobs.configure import build


def variants(given: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that `given` describes, each from one of `rows`.

    Raises:
        ValueError: a variant that names no row, or changes a field that there is not; the message names the variant.
    """
    return {name: _variant(name, change, rows) for name, change in given.items()}


def _variant(name: str, given: Mapping[str, Any], rows: Mapping[str, Method]) -> Method:
    if name in rows:
        raise ValueError(f"variants.{name}: a row has this name; choose another")
    if (row := str(given.get("row", ""))) not in rows:
        near = difflib.get_close_matches(row, rows, 1, 0.5)
        raise ValueError(
            f"variants.{name}.row={row!r} is not known" + (f" (did you mean {near[0]}?)" if near else "")
            + f"; expected one of: {', '.join(rows)}"
        )  # fmt: skip
    try:
        return build(Method, changed(describe(rows[row]), change_of(given)))
    except ValueError as error:
        raise ValueError(f"variants.{name}: {error}") from None


def change_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant changes, without the row it comes from."""
    return {key: value for key, value in given.items() if key != "row"}


def changed(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the entries of `change`, which may be nested in the same way; lists are replaced whole."""
    nested = {k: changed(values.get(k, {}), v) if isinstance(v, Mapping) else v for k, v in change.items()}
    return {**values, **nested}


def words(change: Mapping[str, Any]) -> str:
    """A change as the command line would say it: "train.times=[300] unit=False"."""
    return " ".join(_words(change))


def _words(change: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in change.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={list(value) if isinstance(value, tuple) else value}"
