"""What nothing needs any more: `python -m jobs.gc [store=results] [delete=false] [grace_hours=48] [keep=0]`.

Lists parts, records, Grams and feature sets that no audit names, and what killed writes left; `delete=true` removes
them. Every audit without a manifest counts as alive, but for one that a gc was removing when it was killed: the next
finishes it, unless the audit was resumed since. Nothing younger than the grace is touched. Uploads to S3 that
were broken off are no objects: a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) removes them.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from concept_trak.data.shard import Shard
from concept_trak.plan import group_name, groups
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit
from concept_trak.store.removal import remove
from concept_trak.store.retention import Needs, Waste, expired, files_of, needs, temporary, unneeded
from jobs.configure import absolute, main
from jobs.failure import ended
from jobs.status import audits_of


@dataclass(frozen=True)
class GcConfig:
    store: str = "results"
    delete: bool = False
    """False only lists."""
    grace_hours: float = 48.0
    """Hours; what is younger is never touched."""
    keep: int = 0
    """Finished audits to keep, the newest; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.grace_hours < 0 or self.keep < 0:
            raise ValueError(f"grace_hours={self.grace_hours}, keep={self.keep}; expected at least 0")


def gc(config: GcConfig) -> int:
    """List, or delete, what nothing needs; exit 0, or 4 if storage fails.

    Raises:
        ValueError: an audit's settings or plan cannot be read, so that nobody can tell what it needs.
    """
    return ended(lambda: _gc(config))


def _gc(config: GcConfig) -> int:
    store, before = Store(absolute(config.store)), time.time() - config.grace_hours * 3600
    names = store.names("features")  # before the audits: what an audit that is begun now computes is not among them
    audits = [Audit(store, name) for name in audits_of(store)]
    leaving = expired(audits, config.keep, before)
    living = {audit.id: needs(audit, gram_names) for audit in audits if audit not in leaving}
    waste = [w for audit in leaving for w in files_of(audit)]
    waste += unneeded(store, names, reduce(add, living.values(), Needs()), before) + temporary(store, before)

    def newly_needed() -> Needs:
        began = (Audit(store, name) for name in audits_of(store) if name not in living)
        return reduce(add, (needs(audit, gram_names) for audit in began), Needs())

    gone: list[Waste] = []
    for w in remove(store, waste, newly_needed) if config.delete else waste:
        print(f"{w.kind:<15} {w.name}")
        gone.append(w)
    print("\n".join(_counted(gone, config)))
    return 0


def gram_names(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the Grams of a plan are called."""
    shards = [Shard(row["source"], row["version"], row["first_row"], row["rows"]) for row in plan]
    return [group_name(group) for group in groups(shards)]


def _counted(waste: Iterable[Waste], config: GcConfig) -> list[str]:
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
