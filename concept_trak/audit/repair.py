from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.executor import Executor
from concept_trak import UserError
from concept_trak.audit.pipeline import Run
from concept_trak.audit.plan import group_name, groups
from concept_trak.audit.prepare import Prepared
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig, ClusterConfig, build, plain_values
from concept_trak.data.shard import Shard
from concept_trak.store.manifest import Audit, read_plan, read_settings
from concept_trak.store.records import committed, part_name, record_name
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, TRUNCATED, contents_of
from jobs.progress import Progress


def settings(audit: Audit, cluster: ClusterConfig) -> AuditConfig:
    """What an audit was begun with, on these machines; shards are cut as its plan says.

    Raises:
        ValueError: its settings or its plan cannot be read.
    """
    try:
        rows, values = read_plan(audit), read_settings(audit)
    except FileNotFoundError:
        raise UserError(
            "its audit.yaml or plan.parquet is gone, so nobody knows what to compute; start a new audit"
        ) from None
    del values["fingerprints"]
    values |= {"store": audit.store.uri, "cluster": plain_values(cluster)}
    values["budget"] = {"rejects": 1.0}  # what was rejected once is no news
    values["data"]["shard_rows"] = max((row["rows"] for row in rows), default=1)
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


def _of_features(audit: Audit, left: Mapping[str, str]) -> dict[str, str]:
    """What is damaged of the features that an audit names."""
    said = contents_of(audit)
    parts = {name for key in said.parts for name in (part_name(*key), record_name(*key))}
    sets = tuple(f"features/{fp}/{rest}" for fp in said.fingerprints for rest in ("grams/", "feature_set.json"))
    return {name: what for name, what in left.items() if name in parts or name.startswith(sets)}


def gram_names(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the Grams of a plan are called."""
    shards = [Shard(row["source"], row["version"], row["first_row"], row["rows"]) for row in plan]
    return [group_name(group) for group in groups(shards)]
