"""Print how far an audit is: `python -m jobs.status [store=results] [audit=demo]`.

Reads the audit's files only, so it works while the audit runs, after it died, and from another machine. Without `audit`
it lists every audit of the store.
"""

from dataclasses import dataclass

from concept_trak import UserError
from concept_trak.audit.status import audits_of, describe_status
from concept_trak.config import absolute
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.configure import main


@dataclass(frozen=True)
class StatusConfig:
    store: str = "results"
    audit: str = ""
    """The audit's name; empty lists every audit of the store."""


def status(config: StatusConfig) -> int:
    """Print how far the audit (or every audit) is."""
    store = Store(absolute(config.store))
    audits = [config.audit] if config.audit else audits_of(store)
    if not audits:
        raise UserError(f"{store.uri} holds no audits; expected a store that `python -m jobs.audit` has written to")
    for name in audits:
        print("\n".join(describe_status(Audit(store, name))))
    return 0


if __name__ == "__main__":
    main(status, "status", StatusConfig)
