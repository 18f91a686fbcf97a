"""What nothing needs any more: `python -m jobs.gc [store=results] [delete=false] [grace_hours=48] [keep=0] [days=0]`.

Lists parts, records, Grams and feature sets that no audit names, kept states on whose paths no audit stands, units that
no inquiry into components names, and what killed writes left; `delete=true` removes them. `keep` and `days` say which
finished audits go, and with them the features and states that no other needs; the newest stays. An audit without a
manifest counts as alive until `unfinished_days` have passed without a word from it, but for one that a gc was removing
when it was killed: the next finishes it, unless it was resumed since. Nothing younger than the grace is touched.
Uploads to S3 that were broken off are no objects: a lifecycle rule of the bucket (AbortIncompleteMultipartUpload)
removes them.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf
from operator import add

from concept_trak.audit import inversion_cache
from concept_trak.audit.inversion_cache import STATES
from concept_trak.audit.repair import gram_names
from concept_trak.audit.status import audits_of
from concept_trak.components import units
from concept_trak.config import absolute
from concept_trak.report.index_page import write_index
from concept_trak.store.gc import (
    AUDIT,
    Garbage,
    Needed,
    Retention,
    audit_files,
    expired_audits,
    needed_by,
    remove_garbage,
    temporary_files,
    unneeded_features,
)
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.exit_codes import ended


@dataclass(frozen=True)
class GcConfig:
    store: str = "results"
    delete: bool = False
    """False only lists."""
    grace_hours: float = 48.0
    """Hours; what is younger is never touched."""
    keep: int = 0
    """Finished audits to keep, the newest; 0 keeps all."""
    days: float = 0.0
    """Finished audits that are older go, but for the newest; 0 keeps all."""
    unfinished_days: float = 0.0
    """Unfinished audits that wrote nothing for so long are given up; 0 keeps all."""

    def __post_init__(self) -> None:
        for key in ("grace_hours", "keep", "days", "unfinished_days"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)}; expected at least 0")

    def rules(self, now: float) -> Retention:
        """The same in unix seconds."""
        finished, unfinished = (now - d * 86400 if d else -inf for d in (self.days, self.unfinished_days))
        return Retention(now - self.grace_hours * 3600, self.keep, finished, unfinished)


def gc(config: GcConfig) -> int:
    """List, or delete, what nothing needs; exit 0, or 4 if storage fails.

    Raises:
        ValueError: an audit's settings or plan cannot be read, so that nobody can tell what it needs.
    """
    return ended(lambda: _gc(config))


def _gc(config: GcConfig) -> int:
    store, rules = Store(absolute(config.store)), config.rules(time.time())
    # Before the audits: what an audit that is begun now computes is not among them.
    names, states = store.names("features"), store.names(STATES)
    audits = [Audit(store, name) for name in audits_of(store)]
    leaving = expired_audits(audits, rules)
    living = {audit.id: _needs(audit, states) for audit in audits if audit not in leaving}
    needed = reduce(add, living.values(), Needed())
    waste = [w for audit in leaving for w in audit_files(audit)] + temporary_files(store, rules.before)
    waste += units.unneeded(store, rules.before)
    waste += unneeded_features(store, names, needed, rules.before) + inversion_cache.unneeded(
        store, states, needed, rules.before
    )

    def newly_needed() -> Needed:
        began = (Audit(store, name) for name in audits_of(store) if name not in living)
        return reduce(add, (_needs(audit, states) for audit in began), Needed(units.named(store)))

    gone: list[Garbage] = []
    for w in remove_garbage(store, waste, newly_needed) if config.delete else waste:
        print(f"{w.kind:<15} {w.name}")
        gone.append(w)
    if any(w.kind == AUDIT for w in gone) and config.delete:
        write_index(store)
    print("\n".join(_counted(gone, config)))
    return 0


def _needs(audit: Audit, states: Sequence[str]) -> Needed:
    return needed_by(audit, gram_names) + (inversion_cache.needs(audit) if states else Needed())


def _counted(waste: Iterable[Garbage], config: GcConfig) -> list[str]:
    """Counts and bytes a kind, and what became of them."""
    files, size = Counter(), Counter()
    for w in waste:
        files[w.kind] += 1
        size[w.kind] += w.bytes
    lines = [f"{kind:<15} {count:>8} files {size[kind] / 1e6:>12.3f} MB" for kind, count in files.items()]
    what = "deleted" if config.delete else "nothing was deleted; delete=true deletes these"
    if not files:
        what = f"nothing is unneeded and older than {config.grace_hours:g} hours"
    return [*lines, f"total           {files.total():>8} files {size.total() / 1e6:>12.3f} MB: {what}"]


if __name__ == "__main__":
    main(GcConfig, "gc", gc)
