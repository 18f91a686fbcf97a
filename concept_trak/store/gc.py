"""Garbage collection: the files that no audit names and that are old enough, and their removal.

Candidates are listed before the audits, so the files of an audit that begins meanwhile are not among them. Removal may
be killed at any moment, and an audit may begin during it. Audits are listed again before every batch of deletions, and
a record is deleted before its part: such an audit finds a whole part and derives its record, or finds neither.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, groupby
from math import inf
from typing import Any, TypeVar

from concept_trak import UserError
from concept_trak.store.identity import FEATURE_SET, PART, RECORD, FeatureSet, feature_file
from concept_trak.store.manifest import GIVEN_UP, Audit, feature_sets, given_up, read_manifest, read_plan, recency
from concept_trak.store.part import Damaged
from concept_trak.store.records import READERS
from concept_trak.store.store import Store

BLOCK = 64  # files that one task of a thread looks up or deletes
TEMPORARY, AUDIT, STATE = "temporary file", "audit", "kept states"
UNIT = "unit"  # of components/
T = TypeVar("T")
R = TypeVar("R")
GramNames = Callable[[Sequence[Mapping[str, Any]]], Iterable[str]]


@dataclass(frozen=True)
class Garbage:
    """A file that no audit needs, and its kind."""

    kind: str
    name: str
    bytes: int


@dataclass(frozen=True)
class Needed:
    """What living audits need: files by name, and folders as a whole.

    Folders are `features/<fingerprint>` and `states/<path>`, or directly those of the files.
    """

    names: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()

    @classmethod
    def union(cls, parts: Iterable["Needed"]) -> "Needed":
        """What any of the parts needs; an iterator's parts are in memory one at a time."""
        names, folders = set[str](), set[str]()
        for part in parts:
            names |= part.names
            folders |= part.folders
        return cls(frozenset(names), frozenset(folders))

    def keep(self, name: str) -> bool:
        """Whether a file below features/ or states/ stays."""
        return name in self.names or not self.folders.isdisjoint((_folder(name), name.rpartition("/")[0]))


def needed_by(audit: Audit, gram_names: GramNames) -> Needed:
    """The files and folders that one audit needs. `gram_names` returns the nodes of a plan's Grams.

    An audit without a plan has just begun, and may need anything in its feature sets.

    Raises:
        UserError: its configuration or its plan cannot be read, so that its needs are unknown.
    """
    try:
        sets = frozenset(feature_sets(audit).values())
    except FileNotFoundError:
        if audit.store.size(audit.name("plan.parquet")) is None:
            return Needed()  # a folder in which no audit was begun
        raise unknown_needs(audit, f"it has a plan and no {audit.name('audit.yaml')}") from None
    except Damaged as error:
        raise unknown_needs(audit, str(error)) from error
    try:
        rows = read_plan(audit)
    except FileNotFoundError:
        return Needed(folders=frozenset(features.folder for features in sets))
    except Damaged as error:
        raise unknown_needs(audit, str(error)) from error
    shards, nodes = [row["shard"] for row in rows], list(gram_names(rows))
    names = frozenset(name for features in sets for name in _files_of(features, shards, nodes))
    return Needed(names, frozenset(features.compacted for features in sets))


def safe_clock(store: Store, write: bool) -> float:
    """Unix time. With `write` it is the earlier of this machine's and the storage's, since a clock that is ahead would
    make young files look old."""
    return min(time.time(), store.clock()) if write and store.names("audits") else time.time()


def require_audits(store: Store) -> None:
    """Check that no audit is behind a link to nothing, or deeper than audits are: its needs would be unknown.

    Raises:
        UserError: naming the link, or the audit's settings.
    """
    for name in store.names("audits"):
        if name.count("/") > 2 and name.endswith(("/audit.yaml", "/manifest.json")):
            raise UserError(
                f"{store.uri}/{name} is of an audit in a folder of its own, which no command reads. Nothing is deleted."
                " Move it to audits/, or out of the store if it is given up."
            )
        if name.count("/") == 1 and store.size(name) is None:
            raise UserError(
                f"{store.uri}/{name} is a link to nothing, so which features that audit needs is unknown. Nothing is "
                "deleted. Mount its disk, or remove the link if the audit is given up."
            )


def _files_of(features: FeatureSet, shards: Iterable[str], nodes: Iterable[str]) -> Iterator[str]:
    yield features.settings_file
    for shard in shards:
        yield from (features.record(shard), features.part(shard))
    yield from map(features.gram, nodes)


@dataclass(frozen=True)
class Retention:
    """The rules by which audits are removed. Times are unix seconds of the storage's own clock.

    Attributes:
        before: audits that are younger stay.
        keep: number of the newest finished audits that stay; 0 keeps all.
        finished: finished audits that are older go, except the newest of all; -inf keeps all.
        unfinished: unfinished audits whose newest file is older go; -inf keeps all.
        now: an audit that a wrong clock dated later stays, and does not count among the newest.
    """

    before: float
    keep: int = 0
    finished: float = -inf
    unfinished: float = -inf
    now: float = inf


def expired_audits(audits: Sequence[Audit], rules: Retention) -> list[Audit]:
    """The audits that the rules remove, and those whose removal was interrupted, unless they were resumed since."""
    marked = [audit for audit in audits if given_up(audit)]
    others = [audit for audit in audits if audit not in marked]
    when = {audit: _finished(audit, rules.now) for audit in others}
    finished = sorted((audit for audit in others if when[audit]), key=lambda a: (when[a], a.id), reverse=True)
    beyond = finished[rules.keep :] if rules.keep else []
    aged = [audit for audit in finished[1:] if audit not in beyond and _age(audit) < rules.finished]
    begun = [audit for audit in others if audit.store.size(audit.name("manifest.json")) is None]
    left = [audit for audit in begun if _old(audit, rules.unfinished)]
    return [audit for audit in (*marked, *beyond, *aged, *left) if _old(audit, rules.before)]


def audit_files(audit: Audit) -> list[Garbage]:
    """Every file of an audit that is to be removed."""
    return [Garbage(AUDIT, name, size) for name, (size, _) in audit.store.stats(f"audits/{audit.id}").items()]


def unneeded_features(store: Store, names: Iterable[str], living: Needed, before: float) -> list[Garbage]:
    """The files among `names` (all under features/) that no audit needs and that are older than `before` (unix time).

    The age of a shard is that of the younger of its part and record; a feature set is as young as its youngest file.
    """
    names = list(names)
    free = [name for name in names if not living.keep(name) and _kind(name)]
    old = {name: Garbage(_kind(name), name, size) for name, size, age in existing(store, free) if age < before}
    young = {_unit(name) for name in free if name not in old}
    garbage = {name: waste for name, waste in old.items() if _unit(name) not in young}
    unneeded = {_folder(waste.name) for waste in garbage.values() if waste.kind == FEATURE_SET}
    others = (name for name in names if name not in garbage and _folder(name) in unneeded)
    staying = {_folder(name) for name in others if _kind(name) != FEATURE_SET}
    return [waste for name, waste in garbage.items() if waste.kind != FEATURE_SET or _folder(name) not in staying]


def temporary_files(store: Store, before: float) -> list[Garbage]:
    """Temporary files of killed writes that are older than `before` (unix time)."""
    folders = ("features", "audits", "components", "states", "sources", "questions")
    left = [name for folder in folders for name in store.leftovers(folder)]
    return [Garbage(TEMPORARY, name, size) for name, size, age in existing(store, left) if age < before]


def _kind(name: str) -> str:
    """The kind of a file under features/; "" if this project did not write it."""
    file = feature_file(name)
    return file.kind if file else ""


def _unit(name: str) -> tuple[str, str]:
    """One key for the part and the record of a shard."""
    file = feature_file(name)
    return (file.features.folder, file.stem) if file and file.kind in (RECORD, PART) else (name, "")


def _folder(name: str) -> str:
    """The first two parts of a name: the folder of a feature set, or of the states of one path."""
    return "/".join(name.split("/")[:2])


def _old(audit: Audit, before: float) -> bool:
    """Whether every file of the audit, except the mark of its removal, is older."""
    if before == -inf:
        return False
    files = audit.store.stats(f"audits/{audit.id}")
    return all(age < before for name, (_, age) in files.items() if name != audit.name(GIVEN_UP))


def _finished(audit: Audit, now: float) -> str:
    """When the audit was finished; "" if it has no readable manifest, or one dated in the future."""
    try:
        finished = str((read_manifest(audit) or {}).get("finished", ""))
    except (ValueError, AttributeError):
        return ""
    past, _ = recency(finished, None if now == inf else datetime.fromtimestamp(now, UTC))
    return finished if past else ""


def _age(audit: Audit) -> float:
    """When its manifest was written, by the storage's clock; a manifest that has just vanished counts as young."""
    written = audit.store.modified(audit.name("manifest.json"))
    return inf if written is None else written


def existing(store: Store, names: Sequence[str]) -> list[tuple[str, int, float]]:
    """(name, bytes, time of writing) of the files that still exist."""
    with ThreadPoolExecutor(READERS) as readers:
        rows = _in_blocks(readers, lambda name: (name, store.stat(name)), names)
        return [(name, *status) for name, status in rows if status is not None]


def _in_blocks(threads: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`threads.map` with many items to a task, because a task for each costs more than the look-up of a file."""
    length = min(BLOCK, max(1, len(items) // READERS))
    blocks = (items[start : start + length] for start in range(0, len(items), length))
    return chain.from_iterable(threads.map(lambda block: [function(item) for item in block], blocks))


def unknown_needs(audit: Audit, why: str) -> UserError:
    """The error for an audit whose needs are unknown."""
    return UserError(
        f"which features audit {audit.id} needs is unknown: {why}. Nothing more is deleted. Restore the file, or"
        f" remove {audit.store.uri}/{audit.name('')} if the audit is given up."
    )


BATCH = 1000  # deletions between two looks at the audits: seconds, on any storage
STEPS = {"manifest.json": 0, "plan.parquet": 2, "audit.yaml": 3, GIVEN_UP: 4}  # of an audit; all else is 1


def remove_garbage(store: Store, waste: Sequence[Garbage], newly_needed: Callable[[], Needed]) -> Iterator[Garbage]:
    """Delete garbage, and yield each file after its deletion.

    The order is audit by audit, then records, then parts and Grams, then feature sets. The manifest of an audit goes
    first, so that the rest does not look like a finished audit; plan and settings go last, so that it can be resumed.

    An audit has a mark from before its manifest is deleted until all of it is gone. If this process is killed, the next
    run finds the mark and continues. If the audit is begun again, its mark is removed, and its remaining files stay.

    Args:
        store: where the files are.
        garbage: the files.
        newly_needed: returns the needs of audits that began meanwhile; called before every batch of deletions.
    """
    by_name = {w.name: w for w in waste}
    marks = {name: Garbage(AUDIT, name, 0) for name in {_mark(w.name) for w in waste if w.kind == AUDIT}}
    unmarked = {name: mark for name, mark in marks.items() if name not in by_name}
    with ThreadPoolExecutor(READERS) as hands:
        for _, same in groupby(sorted((marks | by_name).values(), key=_turn), key=lambda w: _turn(w)[:3]):
            files = list(same)
            if unmarked.pop(_mark(files[0].name) if files[0].kind == AUDIT else "", None):
                store.create(_mark(files[0].name), b"{}")
            for start in range(0, len(files), BATCH):
                batch = _still_waste(store, files[start : start + BATCH], newly_needed)
                list(_in_blocks(hands, lambda w: store.delete(w.name), batch))
                yield from (w for w in batch if w.name in by_name)


def _still_waste(store: Store, batch: list[Garbage], newly_needed: Callable[[], Needed]) -> list[Garbage]:
    """The garbage that is still not needed. All of it belongs to one audit, or to none."""
    if batch[0].kind == AUDIT:
        return batch if store.size(_mark(batch[0].name)) is not None else []
    needed = newly_needed()
    return [w for w in batch if not needed.keep(w.name)]


def _mark(name: str) -> str:
    """The file that marks the audit of a file as being removed."""
    _, audit, _ = name.split("/", 2)
    return f"audits/{audit}/{GIVEN_UP}"


def _turn(waste: Garbage) -> tuple[int, str, int, str]:
    """The order of deletion. Files whose keys differ only in the last entry may go in any order."""
    if waste.kind == AUDIT:
        _, audit, relative = waste.name.split("/", 2)
        return 0, audit, STEPS.get(relative, 1), waste.name
    return 1, "", {RECORD: 0, FEATURE_SET: 2}.get(waste.kind, 1), waste.name
