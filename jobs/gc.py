"""Remove files that no audit needs: `python -m jobs.gc [store=results] [delete=false] [grace_hours=48] [keep=0]`.

Lists features, source indices, kept states and component measurements that no audit needs, questions to audits that are
gone, and temporary files of killed writes; `delete=true` removes them. `keep` and `days` select finished audits to
remove, but never the newest. An unfinished audit is kept until it had no write for `unfinished_days`. Files younger
than the grace are never removed.
"""

from dataclasses import dataclass
from math import inf

from concept_trak import UserError
from concept_trak.config import absolute
from concept_trak.data.text import escaped
from concept_trak.report.maintenance import collect_garbage, count_garbage
from concept_trak.store.gc import Retention, safe_clock
from concept_trak.store.store import Store
from jobs.configure import main


@dataclass(frozen=True)
class GcConfig:
    store: str = "results"
    delete: bool = False
    """Whether to delete the files; false only lists them."""
    grace_hours: float = 48.0
    """Hours; younger files are never touched."""
    keep: int = 0
    """Number of the newest finished audits to keep; 0 keeps all."""
    days: float = 0.0
    """Finished audits that are older than this many days are removed, except the newest; 0 keeps all."""
    unfinished_days: float = 0.0
    """Unfinished audits without a write for this many days are removed; 0 keeps all."""

    def __post_init__(self) -> None:
        for key in ("grace_hours", "keep", "days", "unfinished_days"):
            if not getattr(self, key) >= 0:
                raise UserError(f"{key}={getattr(self, key)}; expected at least 0")

    def rules(self, now: float) -> Retention:
        """The limits as Unix times in seconds."""
        finished, unfinished = (now - d * 86400 if d else -inf for d in (self.days, self.unfinished_days))
        return Retention(now - 3600 * self.grace_hours, self.keep, finished=finished, unfinished=unfinished, now=now)


def gc(config: GcConfig) -> int:
    """List, or delete, the files that no audit needs."""
    removed, store = [], Store(absolute(config.store))
    for item in collect_garbage(store, config.rules(safe_clock(store, config.delete)), config.delete):
        removed.append(item)
        print(f"{item.kind:<15} {escaped(item.name)}")
    lines, files, size = count_garbage(removed)
    done = "deleted" if config.delete else "nothing was deleted; delete=true deletes these"
    what = done if files else f"no unneeded file is older than {config.grace_hours:g} hours"
    print("\n".join([*lines, f"total           {files:>8} files {size / 1e6:>12.3f} MB: {what}"]))
    return 0


if __name__ == "__main__":
    main(gc, "gc", GcConfig)
