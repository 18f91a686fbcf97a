"""How what nothing needs is removed: being killed at any moment, or an audit that begins meanwhile, does no harm.

Audits are listed again before every batch of deletions, and a record goes before its part: an audit that begins
meanwhile finds a part whole and derives its record, or finds neither.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from concept_trak.store.commit import Store
from concept_trak.store.manifest import GIVEN_UP
from concept_trak.store.records import READERS
from concept_trak.store.retention import AUDIT, FEATURE_SET, RECORD, Needs, Waste

BATCH = 1000  # deletions between two looks at the audits: seconds, on any storage
STEPS = {"manifest.json": 0, "plan.parquet": 2, "audit.yaml": 3, GIVEN_UP: 4}  # of an audit; all else is 1


def remove(store: Store, waste: Sequence[Waste], newly_needed: Callable[[], Needs]) -> Iterator[Waste]:
    """Delete; what was deleted, as it goes.

    Audit by audit, the manifest first, so that what is left is never taken for a finished one, and plan and settings
    last, so that it can still be resumed; then records, then parts and Grams, at the end feature sets. `newly_needed`
    is asked before every batch of these what audits that began meanwhile need; that stays.

    A mark stands in an audit from before its manifest goes until all of it is gone. If this is killed, the next finds
    the mark and goes on; if the audit is begun again, its mark is gone, and what is left of it stays.
    """
    asked = {w.name: w for w in waste}
    marks = {name: Waste(AUDIT, name, 0) for name in {_mark(w.name) for w in waste if w.kind == AUDIT}}
    unmarked = {name: mark for name, mark in marks.items() if name not in asked}
    with ThreadPoolExecutor(READERS) as hands:
        for _, same in groupby(sorted((marks | asked).values(), key=_turn), key=lambda w: _turn(w)[:3]):
            files = list(same)
            if unmarked.pop(_mark(files[0].name) if files[0].kind == AUDIT else "", None):
                store.create(_mark(files[0].name), b"{}")
            for start in range(0, len(files), BATCH):
                batch = _still_waste(store, files[start : start + BATCH], newly_needed)
                list(hands.map(lambda w: store.delete(w.name), batch))
                yield from (w for w in batch if w.name in asked)


def _still_waste(store: Store, batch: list[Waste], newly_needed: Callable[[], Needs]) -> list[Waste]:
    """Without what came to be wanted since it was listed. All are of one audit, or of none."""
    if batch[0].kind == AUDIT:
        return batch if store.size(_mark(batch[0].name)) is not None else []
    needed = newly_needed()
    return [w for w in batch if not needed.keep(w.name)]


def _mark(name: str) -> str:
    """The mark of being removed in the audit that a file belongs to."""
    _, audit, _ = name.split("/", 2)
    return f"audits/{audit}/{GIVEN_UP}"


def _turn(waste: Waste) -> tuple[int, str, int, str]:
    """What is deleted before what; equal but for the last entry: in any order."""
    if waste.kind == AUDIT:
        _, audit, relative = waste.name.split("/", 2)
        return 0, audit, STEPS.get(relative, 1), waste.name
    return 1, "", {RECORD: 0, FEATURE_SET: 2}.get(waste.kind, 1), waste.name
