"""Settings of an audit read back from the store, and damaged features computed again."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.by_layer import layer_columns
from concept_trak.audit.gram import expected_grams
from concept_trak.audit.gram_tree import gram_tree
from concept_trak.audit.layer_scores import joint_rows, split, write_joint
from concept_trak.audit.mapper import Mapper
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.prepare import Prepared
from concept_trak.audit.worker import open_model
from concept_trak.config import AuditConfig, WorkerSettings, build
from concept_trak.data.shard import Shard
from concept_trak.store.compaction import committed
from concept_trak.store.contents import contents_of
from concept_trak.store.grams import read_gram
from concept_trak.store.identity import GRAM, RECORDS, feature_file
from concept_trak.store.manifest import Audit, read_plan, read_settings, read_table
from concept_trak.store.part import Damaged
from concept_trak.store.queries import query_of_file
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, TRUNCATED


def resumed_config(audit: Audit) -> AuditConfig:
    """The configuration that an audit was begun with; shards are cut as in its plan.

    Raises:
        UserError: its settings or its plan cannot be read.
    """
    try:
        rows, values = read_plan(audit), read_settings(audit)
    except FileNotFoundError:
        raise UserError(
            "its audit.yaml or plan.parquet is gone, so what to compute is unknown; start a new audit"
        ) from None
    return config_of(values, rows, audit.store.uri)


def config_of(settings: Mapping[str, Any], plan: Sequence[Mapping[str, Any]], store: str) -> AuditConfig:
    """The configuration that the settings of an audit (`audit.yaml`) were made from; shards are cut as in its plan."""
    values = {key: value for key, value in settings.items() if key not in ("fingerprints", "evidence")}
    values["data"] = {**values["data"], "shard_rows": max((row["rows"] for row in plan), default=1)}
    return build(AuditConfig, {**values, "store": store})


def mend(p: Prepared, damaged: Mapping[str, str], mapper: Mapper) -> None:
    """Remove damaged files, records before parts, and compute them again; sound shards stay."""
    for name in _of_kind(damaged, RECORDS):  # before any record is read: they are read from these files first
        p.store.delete(name)
    names = [shard.name for shard in p.plan]
    for features, method in {features: m for m, features in p.work.features.items()}.items():  # methods may share them
        shards = {n for n in names if features.part(n) in damaged or features.record(n) in damaged}
        for shard in sorted(shards):
            _remove(p.store, features.record(shard), features.part(shard), damaged)
        if shards:
            config = replace(p.config, methods={method: p.config.methods[method]})
            work, plan = (
                replace(p.work, config=config, features={method: features}),
                [s for s in p.plan if s.name in shards],
            )
            # Rejects of the first run are expected again.
            AuditRun(replace(p, work=work, plan=plan), mapper, most_rejects=1.0).featurize()
    grams = _of_kind(damaged, GRAM)
    for name in grams:
        p.store.delete(name)
    _mend_grams(p, mapper, bool(grams))


def _of_kind(names: Iterable[str], kind: str) -> list[str]:
    return [name for name in names if (file := feature_file(name)) and file.kind == kind]


def _mend_grams(p: Prepared, mapper: Mapper, removed: bool) -> None:
    """Sum Grams again that were `removed`, and those that no longer agree with the records of their shards."""
    planned, run = [shard.planned for shard in p.plan], AuditRun(p, mapper)
    records = {m: list(committed(p.store, features, planned).values()) for m, features in p.work.features.items()}
    if any(len(each) < len(planned) or not sum(r.rows for r in each) for each in records.values()):
        return  # the audit sums them when it goes on
    for method, each in records.items():
        features = p.work.features[method]
        for gram in expected_grams(gram_tree(p.plan).nodes, each):
            try:
                read_gram(p.store, features, gram.node, gram)
            except FileNotFoundError:
                continue
            except Damaged:
                p.store.delete(features.gram(gram.node))
                removed = True
    if removed:
        run.sum_grams(records)


def _remove(store: Store, record: str, part: str, damaged: Mapping[str, str]) -> None:
    """A damaged part with its record, or a damaged record alone. A part that only lacks its record stays."""
    recompute = damaged.get(part) in (ALTERED, TRUNCATED)
    if recompute or record in damaged:
        store.delete(record)
    if recompute:
        store.delete(part)


def damaged_features(audit: Audit, left: Mapping[str, str]) -> dict[str, str]:
    """The damaged files among the features that an audit names."""
    contents = contents_of(audit)
    parts = {name for features, shard in contents.parts for name in (features.part(shard), features.record(shard))}
    sets = tuple(
        name
        for features in contents.features
        for name in (f"{features.grams}/", f"{features.compacted}/", features.settings_file)
    )
    return {name: what for name, what in left.items() if name in parts or name.startswith(sets)}


def removed_results(audit: Audit, left: Mapping[str, str]) -> dict[str, str]:
    """Remove the damaged queries of an unfinished audit; its own command writes them again."""
    if audit.store.size(audit.name("manifest.json")) is not None:
        return {}
    removed = {name: what for name, what in left.items() if query_of_file(audit, name)}
    for name in removed:
        audit.store.delete(name)
    return removed


def gram_nodes(plan: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The Grams of a plan, of every level of its tree: by the name of each, the shards that it sums."""
    shards = [
        Shard(source=row["source"], version=row["version"], first_row=row["first_row"], rows=row["rows"])
        for row in plan
    ]
    names = [shard.name for shard in shards]
    return {node.name: names[node.first : node.stop] for node in gram_tree(shards).nodes}


STRONGEST = 5  # layers that are printed


def split_finished(audit: Audit) -> Iterator[str]:
    """Write the joint table of a finished audit; a line for the file, then one for each concept and method.

    Raises:
        UserError: the audit is missing or unfinished, or its projector mixes layers.
    """
    config = resumed_config(audit)
    sizes = {name: p.numel() for name, p in open_model(config.model, WorkerSettings()).parameters.items()}
    by_layer = layer_columns(config.projector, sizes)
    table = list(joint_rows(read_table(audit, "top.parquet").to_pylist(), by_layer.names, split(audit, by_layer)))
    yield f"written    {audit.store.uri.removeprefix('file://')}/{write_joint(audit, table)}"
    totals = defaultdict[tuple[str, str], Counter[str]](Counter)
    for row in table:
        if (row["form"], row["end"]) == ("damped", "top"):
            totals[row["concept"], row["method"]][row["layer"]] += row["score"]
    for (concept, method), total in totals.items():
        whole = sum(total.values())
        first = sorted(total.items(), key=lambda entry: -abs(entry[1]))[:STRONGEST]
        shares = ", ".join(f"{layer} {score / whole:.0%}" for layer, score in first) if whole else "nothing"
        yield f"{concept} by {method}: of the top's scores, {shares}"
