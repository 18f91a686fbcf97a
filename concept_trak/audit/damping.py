"""`damping=auto` in an audit: the parts whose scores are correlated, and the file that keeps the choice.

The first driver writes the choice to `<method>/damping.json`, so that a resumed audit solves the same system.
"""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from concept_trak.attribution.damping import DampingChoice, DampingPoint
from concept_trak.store.manifest import Audit, write_json
from concept_trak.store.records import Record

CORRELATED_ROWS = 4096
"""Samples whose scores are correlated, if `CORRELATED_PARTS` have as many: a bound on the bytes that a solve reads."""
CORRELATED_PARTS = 8
Halves = tuple[Float[np.ndarray, "2 k"] | None, ...]
"""The query halves of every concept, in the order of the concepts; None for a concept with a single sample."""


def damping_file(method: str) -> str:
    """The file of a method's choice, relative to the audit's folder."""
    return f"{method}/damping.json"


def correlated_records(records: Sequence[Record]) -> tuple[Record, ...]:
    """Parts spread evenly over the plan, at most `CORRELATED_PARTS`; fewer if they have `CORRELATED_ROWS` rows."""
    filled = [record for record in records if record.rows]
    spread = list[Record]()
    for count in range(1, min(CORRELATED_PARTS, len(filled)) + 1):
        spread = [filled[len(filled) * i // count] for i in range(count)]
        if sum(record.rows for record in spread) >= CORRELATED_ROWS:
            break
    return tuple(spread)


def choice_values(choice: DampingChoice) -> dict[str, object]:
    """A choice as plain values, for `damping.json` and `metrics.json`."""
    return {
        "damping": choice.damping,
        "reason": choice.reason,
        "curve": [point._asdict() | {"own": list(point.own)} for point in choice.curve],
    }


def read_choice(audit: Audit, method: str) -> DampingChoice | None:
    """The choice in the audit's folder, or None."""
    name = audit.name(damping_file(method))
    if audit.store.size(name) is None:
        return None
    values = json.loads(audit.store.read(name))
    curve = tuple(DampingPoint(**point | {"own": tuple(point["own"])}) for point in values["curve"])
    return DampingChoice(values["damping"], curve, values["reason"])


def keep_choice(audit: Audit, method: str, choice: DampingChoice) -> DampingChoice:
    """Write the choice if the audit has none; return the choice that the audit then has."""
    write_json(audit, damping_file(method), choice_values(choice))
    stored = read_choice(audit, method)
    assert stored is not None, f"{damping_file(method)} was just written"
    return stored
