"""`damping=auto` in an audit: which parts the scores are correlated over, and the choice that is kept.

The first driver's choice stands in `<method>/damping.json`, so that a resumed audit solves the same system.
"""

import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from concept_trak.attribution.damping import DampingChoice, DampingPoint
from concept_trak.store.manifest import Audit, write_json
from concept_trak.store.records import Record

CORRELATED_ROWS = 4096
"""Samples whose scores are correlated, where so many are in `CORRELATED_PARTS`: a bound on what a solve reads."""
CORRELATED_PARTS = 8
Halves = tuple[Float[np.ndarray, "2 k"] | None, ...]
"""Of every concept, in their order; None where a concept has one sample."""


def damping_file(method: str) -> str:
    """Below the audit."""
    return f"{method}/damping.json"


def correlated_records(records: Sequence[Record]) -> tuple[Record, ...]:
    """Parts spread evenly over the plan: as many as have `CORRELATED_ROWS` rows, at most `CORRELATED_PARTS`."""
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
    """The choice that stands in the audit; None before there is one."""
    name = audit.name(damping_file(method))
    if audit.store.size(name) is None:
        return None
    values = json.loads(audit.store.read(name))
    curve = tuple(DampingPoint(**point | {"own": tuple(point["own"])}) for point in values["curve"])
    return DampingChoice(values["damping"], curve, values["reason"])


def keep_choice(audit: Audit, method: str, choice: DampingChoice) -> DampingChoice:
    """Put the choice if absent; the one that then stands."""
    write_json(audit, damping_file(method), choice_values(choice))
    standing = read_choice(audit, method)
    assert standing is not None, f"{damping_file(method)} was just written"
    return standing
