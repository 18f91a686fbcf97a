"""Every file against what was written down about it: `python -m jobs.verify [store=results] [audit=demo]`.

Without `audit`, every audit of the store, the units of components and the kept states. `repair=true` computes damaged
features again, with the audit's own settings and on `cluster`; shards that are sound are left alone. What gc was
removing is not looked at. Exit codes: 0 all is well; 2 a mistake to mend; 4 storage fails; 6 something is wrong; and,
while repairing, those of `jobs.audit`.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from concept_trak.audit import inversion_cache
from concept_trak.audit.prepare import prepare
from concept_trak.audit.repair import _of_features, mend, settings
from concept_trak.audit.status import audits_of
from concept_trak.components import units
from concept_trak.config import AuditConfig, ClusterConfig, absolute
from concept_trak.store.manifest import Audit, given_up
from concept_trak.store.store import Store
from concept_trak.store.verify import MISSING, SOUND, Finding, verify_audits
from jobs.configure import main
from jobs.execute import executor
from jobs.exit_codes import ended

WRONG = 6


@dataclass(frozen=True)
class VerifyConfig:
    store: str = "results"
    audit: str = ""
    """Empty: every audit of the store."""
    repair: bool = False
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where damaged shards are computed again."""


def verify(config: VerifyConfig) -> int:
    """Print what is wrong, mend what can be if asked, and return 0 or 6; what else, the module says."""
    return ended(lambda: _verify(config))


def _verify(config: VerifyConfig) -> int:
    store = Store(absolute(config.store))
    known = [name for name in audits_of(store) if not given_up(Audit(store, name))]
    if (not known and not store.names("components")) or (config.audit and config.audit not in known):
        raise ValueError(f"{store.uri} has no audit {config.audit or 'at all'}; it has: {', '.join(known) or 'none'}")
    audits = [Audit(store, name) for name in known if config.audit in ("", name)]
    left = 0 if config.audit else _loose(store, config.repair)
    wrong = _told(audits)
    if wrong and config.repair:
        _mend(audits, wrong, config.cluster)
        print("looking again at what was wrong")
        wrong = _told(audits, wrong)
    elif wrong:
        print("repair=true computes damaged features again")
    return WRONG if wrong or left else 0


def _loose(store: Store, repair: bool) -> int:
    """How much of what belongs to no audit alone is damaged and stays so."""
    damaged = _remade(store, units.look(store), repair, "the same jobs.components command measures it again")
    return damaged + _remade(store, inversion_cache.look(store), repair, "it is made again when it is needed")


def _remade(store: Store, found: Iterable[Finding], repair: bool, again: str) -> int:
    """How many kept states, or units of components, are damaged and stay so; a damaged one that is mended is removed,
    to be made `again`."""
    left = 0
    for finding in (finding for finding in found if finding.damage):
        print(f"{finding.what:<20} {finding.name}: {again}")
        if repair and finding.what != MISSING:
            store.delete(finding.name)
        else:
            left += 1
    return left


def _told(audits: Sequence[Audit], only: Sequence[Finding] = ()) -> list[Finding]:
    """Print every finding but the sound ones, and the counts; what is damage."""
    counts: Counter[str] = Counter()
    wrong = []
    for finding in verify_audits(audits, {finding.name for finding in only} or None):
        counts[finding.what] += 1
        if finding.what != SOUND:
            print(f"{finding.what:<20} {finding.name}" + (f" (audit {finding.audit})" if finding.audit else ""))
        if finding.damage:
            wrong.append(finding)
    print(f"{counts.total()} files: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return wrong


def _mend(audits: Sequence[Audit], wrong: Sequence[Finding], cluster: ClusterConfig) -> None:
    """Each damaged feature by the first audit that can; what no audit can mend, and why, is said on stderr."""
    left, machines = {finding.name: finding.what for finding in wrong}, executor(AuditConfig(cluster=cluster))
    refused: list[tuple[dict[str, str], str]] = []
    for audit in audits:
        if own := {name: what for name, what in left.items() if name.startswith(audit.name(""))}:
            why = f"results cannot be mended; start a new audit, it reuses the features of {audit.id}"
            refused.append((own, f"{', '.join(own)}: {why}"))
        if mine := _of_features(audit, left):
            try:
                mend(prepare(settings(audit, cluster)), mine, machines)
            except ValueError as error:
                refused.append((mine, f"audit {audit.id}: {error}"))
            else:
                left = {name: what for name, what in left.items() if name not in mine}
    for names, why in refused:
        if not left.keys().isdisjoint(names):  # else an audit of the same features has mended them
            print(f"error: {why}", file=sys.stderr)


if __name__ == "__main__":
    main(VerifyConfig, "verify", verify)
