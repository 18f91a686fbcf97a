"""Every file against what was written down about it: `python -m jobs.verify [store=results] [audit=demo]`.

Without `audit`, every audit of the store, the units of components and the kept states. `repair=true` computes damaged
features again, with the audit's own settings and on `cluster`; shards that are sound are left alone. What gc was
removing is not looked at. Exit codes: 0 all is well; 2 a mistake to mend; 4 storage fails; 6 something is wrong; and,
while repairing, those of `jobs.audit`.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import yaml

from cluster.executor import Executor
from concept_trak import casebook, kept_paths
from concept_trak.config import AuditConfig, ClusterConfig
from concept_trak.stages import Work
from concept_trak.store.check import ALTERED, MISSING, SOUND, TRUNCATED, Finding, check
from concept_trak.store.claim import claim, fingerprints, plan
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit, given_up
from concept_trak.store.records import committed, part_name, record_name
from jobs.audit import executor
from jobs.configure import absolute, build, main, plain_values
from jobs.failure import ended
from jobs.prepare import Prepared, prepare
from jobs.progress import Progress
from jobs.run import Run
from jobs.status import audits_of

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
    units = _remade(store, casebook.look(store), repair, "the same jobs.components command measures it again")
    return units + _remade(store, kept_paths.look(store), repair, "it is made again when it is needed")


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
    for finding in check(audits, {finding.name for finding in only} or None):
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


def _of_features(audit: Audit, left: Mapping[str, str]) -> dict[str, str]:
    """What is damaged of the features that an audit names."""
    said = claim(audit)
    parts = {name for key in said.parts for name in (part_name(*key), record_name(*key))}
    sets = tuple(f"features/{fp}/{rest}" for fp in said.fingerprints for rest in ("grams/", "feature_set.json"))
    return {name: what for name, what in left.items() if name in parts or name.startswith(sets)}


def settings(audit: Audit, cluster: ClusterConfig) -> AuditConfig:
    """What an audit was begun with, on these machines; shards are cut as its plan says.

    Raises:
        ValueError: its settings or its plan cannot be read.
    """
    rows = plan(audit)
    if not rows or audit.store.size(audit.name("audit.yaml")) is None:
        raise ValueError("its audit.yaml or plan.parquet is gone, so nobody knows what to compute; start a new audit")
    fingerprints(audit)  # raises if the file is damaged
    values = yaml.safe_load(audit.store.read(audit.name("audit.yaml")))
    del values["fingerprints"]
    values |= {"store": audit.store.uri, "cluster": plain_values(cluster)}
    values["budget"] = {"rejects": 1.0}  # what was rejected once is no news
    values["data"]["shard_rows"] = max(row["rows"] for row in rows)
    return build(AuditConfig, values)


def mend(p: Prepared, damaged: Mapping[str, str], machines: Executor) -> None:
    """Remove what is damaged, records before parts, and compute it again; sound shards and other methods rest."""
    progress, names = Progress(p.audit, p.config.interval), [shard.name for shard in p.plan]
    for fp, method in {fp: method for method, fp in p.work.fingerprints.items()}.items():  # methods may share features
        shards = {n for n in names if part_name(fp, n) in damaged or record_name(fp, n) in damaged}
        for shard in sorted(shards):
            _remove(p.store, record_name(fp, shard), part_name(fp, shard), damaged)
        if shards:
            work = Work(replace(p.config, methods={method: p.config.methods[method]}), {method: fp})
            Run(replace(p, work=work, plan=[s for s in p.plan if s.name in shards]), machines, progress).featurize()
    if grams := [name for name in damaged if "/grams/" in name]:
        for name in grams:
            p.store.delete(name)
        done = {m: list(committed(p.store, fp, names).values()) for m, fp in p.work.fingerprints.items()}
        if all(len(records) == len(names) for records in done.values()):  # else the audit sums them when it goes on
            Run(p, machines, progress).sum_grams(done)


def _remove(store: Store, record: str, part: str, damaged: Mapping[str, str]) -> None:
    """A damaged part with its record, or a damaged record alone. A part that only lacks its record stays."""
    recompute = damaged.get(part) in (ALTERED, TRUNCATED)
    if recompute or record in damaged:
        store.delete(record)
    if recompute:
        store.delete(part)


if __name__ == "__main__":
    main(VerifyConfig, "verify", verify)
