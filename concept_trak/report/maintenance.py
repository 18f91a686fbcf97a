"""Maintenance of a whole store: verify and repair audits, kept states and components, and remove garbage."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

from concept_trak import UserError
from concept_trak.audit import index_upkeep, index_verification, inversion_cache
from concept_trak.audit.inversion_cache import STATES
from concept_trak.audit.mapper import Mapper, serial
from concept_trak.audit.prepare import prepare
from concept_trak.audit.repair import damaged_features, gram_nodes, mend, removed_results, resumed_config
from concept_trak.audit.status import audits_of
from concept_trak.components import units
from concept_trak.config import WorkerSettings
from concept_trak.data.text import escaped
from concept_trak.report.index_page import write_index
from concept_trak.store.gc import (
    Garbage,
    Needed,
    Retention,
    audit_files,
    expired_audits,
    needed_by,
    remove_garbage,
    require_audits,
    temporary_files,
    unneeded_features,
)
from concept_trak.store.manifest import GIVEN_UP, Audit, given_up
from concept_trak.store.question_files import QUESTIONS, unneeded_questions
from concept_trak.store.sources import SOURCES
from concept_trak.store.store import Store
from concept_trak.store.verify import MISSING, SOUND, Finding, verify_audits


def verify_store(
    store: Store,
    audit: str = "",
    repair: bool = False,
    mapper: Mapper = serial,
    worker: WorkerSettings = WorkerSettings(gpus=1),
    line: Callable[[str], None] = print,
) -> bool:
    """Check every file against its record, and with `repair` compute damaged features again.

    Args:
        store: where the audits are.
        audit: the only audit to check; empty checks every audit, the components and the kept states.
        repair: whether damaged features are computed again, with the audit's own settings.
        mapper: where they are computed.
        worker: what one worker may use of its machine.
        line: takes each line of text about the findings.

    Returns:
        Whether no damage is left.

    Raises:
        UserError: there is no such audit.
    """
    names = [name for name in audits_of(store) if not given_up(Audit(store, name))]
    if (not names and not store.names("components")) or (audit and audit not in names):
        raise UserError(f"{store.uri} has no audit {audit or 'at all'}; it has: {', '.join(names) or 'none'}")
    audits = [Audit(store, name) for name in names if audit in ("", name)]
    left = 0 if audit else _verify_remade(store, repair, line)
    damage = _report(audits, line)
    if damage and repair:
        _mend(audits, damage, mapper, worker)
        line("looking again at what was wrong")
        damage = _report(audits, line, damage)
    elif damage:
        line("repair=true computes damaged features again")
    return not damage and not left


def _verify_remade(store: Store, repair: bool, line: Callable[[str], None]) -> int:
    """The number of kept states and component measurements that stay damaged. Repair removes a damaged one, because the
    next run that needs it computes it again."""
    remade = ((units.verify_measurements(store), "the same jobs.components command measures it again"),
              (inversion_cache.verify_states(store), "it is made again when it is needed"),
              (index_verification.verify_indices(store), "it is made again when it is needed"))  # fmt: skip
    left = 0
    for findings, remedy in remade:
        for finding in (f for f in findings if f.damage):
            line(f"{finding.what:<20} {finding.name}: {remedy}")
            if repair and finding.what != MISSING:
                store.delete(finding.name)
            else:
                left += 1
    return left


def _report(audits: Sequence[Audit], line: Callable[[str], None], only: Sequence[Finding] = ()) -> list[Finding]:
    """Print a line for every finding that is not sound, and the counts; returns the damage."""
    counts, damage = Counter[str](), list[Finding]()
    for finding in verify_audits(audits, gram_nodes, {f.name for f in only} or None):
        counts[finding.what] += 1
        if finding.what != SOUND:
            detail = f" (audit {finding.audit})" if finding.audit else f": {finding.why}" if finding.why else ""
            line(escaped(f"{finding.what:<20} {finding.name}{detail}"))
        if finding.damage:
            damage.append(finding)
    line(f"{counts.total()} files: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return damage


def _mend(audits: Sequence[Audit], damage: Sequence[Finding], mapper: Mapper, worker: WorkerSettings) -> None:
    """Compute each damaged feature by the first audit that can. What no audit can repair goes to stderr, with why."""
    left = {finding.name: finding.what for finding in damage}
    refusals = list[tuple[Mapping[str, str], str]]()
    for audit in audits:
        removed = removed_results(audit, left)
        left = {name: what for name, what in left.items() if name not in removed}
        if results := {name: what for name, what in left.items() if name.startswith(audit.name(""))}:
            why = f"results cannot be mended; start a new audit, it reuses the features of {audit.id}"
            refusals.append((results, f"{', '.join(results)}: {why}"))
        if features := damaged_features(audit, left):
            try:
                mend(prepare(resumed_config(audit), worker, mapper), features, mapper)
            except UserError as error:
                refusals.append((features, f"audit {audit.id}: {error}"))
            else:
                left = {name: what for name, what in left.items() if name not in features}
    for names, why in refusals:
        if not left.keys().isdisjoint(names):  # else an audit of the same features has mended them
            print(f"error: {why}", file=sys.stderr)


def collect_garbage(store: Store, rules: Retention, delete: bool = False) -> Iterator[Garbage]:
    """List, or delete, the files that no audit needs.

    Args:
        store: where the audits are.
        rules: the age limits, in unix seconds.
        delete: whether to delete the files; False only lists them.

    Raises:
        UserError: an audit's settings or plan cannot be read, so that what it needs is unknown; or the store is empty.
    """
    _require_results(store)
    # Listed before the audits: what an audit that begins now computes is not among them.
    names, states, indices, questions = map(store.names, ("features", STATES, SOURCES, QUESTIONS))
    audits = [Audit(store, name) for name in audits_of(store)]
    leaving = expired_audits([audit for audit in audits if not store.is_linked(audit.name(GIVEN_UP))], rules)
    index_needs = index_upkeep.IndexNeeds(store, indices) if indices else None
    needs = partial(_needs, index_needs, bool(states))
    staying = [audit for audit in audits if audit not in leaving]
    living = {audit.id for audit in staying}
    linked = Needed(frozenset(filter(store.is_linked, (*names, *states, *indices))))  # other stores may need them
    needed = Needed.union(chain([linked], map(needs, staying)))
    garbage = [g for audit in leaving for g in audit_files(audit)] + temporary_files(store, rules.before)
    garbage += [unit for unit in units.unneeded_measurements(store, rules.before) if not store.is_linked(unit.name)]
    garbage += unneeded_features(store, names, needed, rules.before)
    garbage += inversion_cache.unneeded_states(store, states, needed, rules.before)
    garbage += index_upkeep.unneeded_indices(store, indices, needed, rules.before)
    garbage += unneeded_questions(store, questions, living, rules.before)

    def newly_needed() -> Needed:
        begun = [Audit(store, name) for name in audits_of(store) if name not in living]
        return Needed.union([_needed_whole(store, begun), *map(needs, begun)])

    yield from remove_garbage(store, garbage, newly_needed) if delete else garbage
    if delete and leaving:
        write_index(store)


def _needs(index_needs: Callable[[Audit], Needed] | None, keeps_states: bool, audit: Audit) -> Needed:
    needed = [needed_by(audit, gram_nodes)]
    needed += [index_needs(audit)] if index_needs else []
    return Needed.union([*needed, inversion_cache.needed_states(audit)] if keeps_states else needed)


def _require_results(store: Store) -> None:
    """Refuse a store that no audit has written to."""
    if not any(map(store.names, ("audits", "features", STATES, SOURCES, "components"))):
        raise UserError(f"{store.uri} holds nothing; expected a store that `python -m jobs.audit` has written to")
    require_audits(store)


def _needed_whole(store: Store, begun: Sequence[Audit]) -> Needed:
    """The measurements, and the folders of audits that began after the listing: their surveys may be younger than it,
    and so name older indices."""
    whole = frozenset(sources.folder for audit in begun if (sources := index_upkeep.source_set(audit)))
    return Needed(units.named_measurements(store), whole | {f"{QUESTIONS}/{audit.id}" for audit in begun})


def count_garbage(garbage: Iterable[Garbage]) -> tuple[list[str], int, int]:
    """(a line of counts and bytes for each kind, files in all, bytes in all)."""
    files, size = Counter[str](), Counter[str]()
    for item in garbage:
        files[item.kind] += 1
        size[item.kind] += item.bytes
    lines = [f"{kind:<15} {count:>8} files {size[kind] / 1e6:>12.3f} MB" for kind, count in files.items()]
    return lines, files.total(), size.total()
