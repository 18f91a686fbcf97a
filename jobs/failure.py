"""How a run ends early, and what it calls what failed."""

from collections.abc import Sequence
from typing import Any

from concept_trak.query import Question
from concept_trak.reduction import Group, Scoring
from concept_trak.stages import Featuring


class Stopped(RuntimeError):
    """A run that ends early: nothing is lost, and `exit_code` says why (3 rejects, 5 failed work)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def failure(stage: str, errors: Sequence[str], total: int) -> Stopped:
    """What a stage ends with when items failed: the user's own mistake in its words, else the first error."""
    kind, _, text = errors[0].strip().splitlines()[-1].partition(": ")
    if kind in ("ValueError", "concept_trak.store.part.Damaged"):
        return Stopped(text, 2)
    return Stopped(
        f"{stage}: {len(errors)} of {total} failed, the others are done; the first says: {kind}: {text}. Run the same "
        "command again to retry only what failed.",
        5,
    )


def label(item: Any) -> str:
    """What a failed item is called in the name of its log."""
    match item:
        case Featuring(method, shard):
            return f"{method}-{shard.name}"
        case Scoring(method, record):
            return f"{method}-{record.shard}"
        case Question(method, concept):
            return f"{method}-{concept.name}"
        case Group(method, name):
            return f"{method}-{name}"
        case _:
            return getattr(item, "method", "item")
