"""Which of the inversions kept in `states/` audits stand on, and whether they are as they were written.

A folder of states is needed as a whole, by every audit whose features are taken on such paths: rows that left the
data go when no audit needs the path any more.
"""

import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from concept_trak.inversion import STATES, path_of, states_in
from concept_trak.probe import Probe
from concept_trak.store.check import ALTERED, SOUND, Finding
from concept_trak.store.claim import fingerprints
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Damaged
from concept_trak.store.records import READERS
from concept_trak.store.retention import STATE, Needs, Waste, looked_up, unknown

OURS = re.compile(rf"{STATES}/[0-9a-f]+/[0-9a-f]{{32}}\.safetensors")


def needs(audit: Audit) -> Needs:
    """The folders of states on which an audit's features stand.

    Raises:
        ValueError: a feature set cannot be read, so that nobody can tell.
    """
    try:
        sets = fingerprints(audit)
    except FileNotFoundError:
        return Needs()  # no audit was begun there, or `retention.needs` says what is the matter
    paths = (_path(audit, f"features/{fp}/feature_set.json") for fp in sets)
    return Needs(whole=frozenset(path for path in paths if path))


def _path(audit: Audit, name: str) -> str:
    """The path of a feature set; empty if it stands on no inversion."""
    try:
        settings = json.loads(audit.store.read(name))["settings"]
        probe = Probe(**{**settings["train"], "times": tuple(settings["train"]["times"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise unknown(audit, f"{name} cannot be read ({error}), so neither can its kept states be told") from error
    return path_of(settings, probe) if probe.trajectory == "ddim_inversion" else ""


def unneeded(store: Store, names: Iterable[str], living: Needs, before: float) -> list[Waste]:
    """Those of `names` (all that lies under states/) that no audit needs, older than `before` (unix time)."""
    free = looked_up(store, [name for name in names if OURS.fullmatch(name) and not living.keep(name)])
    return [Waste(STATE, name, size) for name, size, age in free if age < before]


def look(store: Store) -> Iterator[Finding]:
    """Every file of kept states: sound or altered. A missing one is made when it is needed."""
    ours = [name for name in store.names(STATES) if OURS.fullmatch(name)]
    with ThreadPoolExecutor(READERS) as readers:
        yield from filter(None, readers.map(lambda name: _looked_into(store, name), ours))


def _looked_into(store: Store, name: str) -> Finding | None:
    """None for one that is gone since it was listed."""
    try:
        states_in(store.read(name), name)
    except FileNotFoundError:
        return None
    except Damaged:
        return Finding(name, ALTERED)
    return Finding(name, SOUND)
