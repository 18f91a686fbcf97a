"""Prepare an audit in four steps, and find every mistake before a worker starts.

`resolve` the configuration, `open_inputs` (store, model, data), `check_inputs` (whether concepts and data fit the
model), `begin_prepared` (feature sets, plan, settings).
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import product
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, equal_conditions, unprompted_texts
from concept_trak.attribution.query import (
    require_conditioning,
    require_conditions,
    require_query_direction,
    require_untruncated,
)
from concept_trak.audit.checks import require_batch_consistency, require_fit, warn_of_prediction_type
from concept_trak.audit.diff import require_comparable
from concept_trak.audit.plan import Demand, demand, feature_settings, shards
from concept_trak.audit.query_features import QueryTask
from concept_trak.audit.status import require_new_name
from concept_trak.audit.worker import Work, open_model
from concept_trak.config import AuditConfig, DataConfig, ModelConfig, WorkerSettings, absolute, plain_values
from concept_trak.data.columns import survey
from concept_trak.data.files import canonical_uri
from concept_trak.data.inventory import LeftOut, Survey
from concept_trak.data.shard import Shard, cut
from concept_trak.models.encode import read_concept_files
from concept_trak.models.location import is_hub_id
from concept_trak.store.identity import FeatureSet, as_json, open_feature_set
from concept_trak.store.manifest import Audit, begin_audit
from concept_trak.store.secrets import refuse_secrets
from concept_trak.store.store import Store

TOGETHER = 8
"""Prompts predicted together and alone before an audit: two see each other already, and each costs two evaluations."""
# Settings that may differ between two runs of one audit, because no result depends on them.
EXECUTION = ("store", "keep_states", "model.batch", "model.device", "data.shard_rows")


@dataclass(frozen=True)
class Prepared:
    """An audit that can run."""

    work: Work
    store: Store
    audit: Audit
    plan: list[Shard]
    sources: int
    settings: dict[str, dict[str, Any]]
    queries: tuple[QueryTask, ...]
    demand: Demand
    resolution: int
    sizes: dict[str, int]
    """The attributable parameters, by name and number of scalars, in the model's order."""
    left_out: tuple[LeftOut, ...] = ()
    """Everything in the data set that no sample uses, and the files at model.path that are not loaded."""

    @property
    def config(self) -> AuditConfig:
        return self.work.config

    @property
    def parameters(self) -> int:
        return self.demand.parameters

    @property
    def samples(self) -> int:
        return sum(shard.rows for shard in self.plan)


def prepare(config: AuditConfig, worker: WorkerSettings = WorkerSettings()) -> Prepared:
    """Check the configuration, the model, the data and the store, cut the plan, and begin the audit in the store.

    Raises:
        UserError: one of them is wrong; the message has what was expected, and what to do.
    """
    config = resolve(config)
    inputs = open_inputs(config, worker)
    queries = check_inputs(config, inputs)
    return begin_prepared(config, worker, inputs, queries)


def resolve(config: AuditConfig) -> AuditConfig:
    """The configuration with absolute paths and a name, after a check that it is complete and has no secret.

    Raises:
        UserError: a key is not set or looks like a credential, or a concept does not fit a method.
    """
    config = config.complete()
    refuse_secrets(plain_values(config))  # before a message or a file could show one
    for concept, method in product(config.concepts, config.methods.values()):
        require_query_direction(method, concept)
    now = datetime.now(UTC)
    return replace(
        config,
        audit=tick(config.audit, now) or now.strftime("%Y%m%dT%H%M%SZ"),
        store=absolute(config.store),
        model=_absolute_model(config.model),
        data=replace(config.data, uri=canonical_uri(config.data.uri)),
    )


# The words of cron, and what a tick of each is called; names sort in the order of time.
TICKS = {"@hourly": "%Y-%m-%dT%H", "@daily": "%Y-%m-%d", "@weekly": "%G-W%V", "@monthly": "%Y-%m"}


def tick(audit: str, now: datetime) -> str:
    """The name of the week, day, ... of `now` (UTC) for `@weekly` (2026-W48), `@daily`, ...; any other name unchanged.

    All runs of one period are one audit.

    Raises:
        UserError: the word after `@` is unknown.
    """
    if not audit.startswith("@"):
        return audit
    if audit not in TICKS:
        raise UserError(f"audit={audit!r} is no schedule; expected one of: {', '.join(TICKS)}, or a name")
    return now.strftime(TICKS[audit])


def _absolute_model(model: ModelConfig) -> ModelConfig:
    def absolute_or_hub(address: str) -> str:
        return address if not address or is_hub_id(address) else absolute(address)

    return replace(
        model,
        path=absolute_or_hub(model.path),
        weights=absolute_or_hub(model.weights),
        lora=absolute_or_hub(model.lora),
        embeddings=tuple(map(absolute_or_hub, model.embeddings)),
    )


@dataclass(frozen=True)
class Inputs:
    """What an audit opens: the store, the model and the data set."""

    store: Store
    denoiser: Denoiser
    data: Survey


def open_inputs(config: AuditConfig, worker: WorkerSettings) -> Inputs:
    """Open the store, the model and the data set.

    Raises:
        UserError: one of them is missing, cannot be read, or does not fit the others.
    """
    _require_apart(config)
    store = Store(config.store)
    store.probe()
    require_new_name(Audit(store, config.audit))
    denoiser = open_model(config.model, worker)
    return Inputs(store, denoiser, survey(config.data, denoiser.conditioning))


def _require_apart(config: AuditConfig) -> None:
    """That no result is written among the data, where a next audit would read it as data."""
    data, store = (address.removeprefix("file://").rstrip("/") for address in (config.data.uri, config.store))
    for folder in {data, os.path.realpath(data)} if "://" not in data else {data}:
        if f"{store}/".startswith(f"{folder}/") or f"{os.path.realpath(store)}/".startswith(f"{folder}/"):
            raise UserError(
                f"store={config.store} is in the folder of data.uri={config.data.uri}, where results would be read as "
                "data; put the store elsewhere, or set data.uri to the folder of the samples alone"
            )


def check_inputs(config: AuditConfig, inputs: Inputs) -> list[QueryTask]:
    """The queries, without a method, after a check that the concepts and the data fit the model.

    Raises:
        UserError: one does not; the message names the concept, the method or the size.
    """
    denoiser = inputs.denoiser
    require_conditions(denoiser, config.methods, config.concepts)
    queries = [_query(denoiser, concept, config.data) for concept in config.concepts]
    if config.model.batch != 1:
        prompts = [text for concept in config.concepts for pair in concept.condition_pairs for text in pair]
        texts = list(dict.fromkeys(prompts)) or unprompted_texts(denoiser, ("0", "1"), 0)
        require_batch_consistency(denoiser, texts[: min(config.model.batch or TOGETHER, TOGETHER)])
    first = next(source for source in inputs.data.sources if source.rows)
    require_fit(denoiser, cut(first, 1)[0], config.data)
    warn_of_prediction_type(denoiser, cut(first, 2)[0], config.data)
    return queries


def begin_prepared(
    config: AuditConfig, worker: WorkerSettings, inputs: Inputs, queries: Sequence[QueryTask]
) -> Prepared:
    """Create the feature sets, cut the plan, and write the audit's settings and plan to the store.

    Raises:
        UserError: the audit exists with other settings, or cannot be compared with the one that `since` names.
    """
    store, denoiser = inputs.store, inputs.denoiser
    identity = denoiser.identity()
    settings = {n: feature_settings(config, m, denoiser, identity) for n, m in config.methods.items()}
    plan = shards(inputs.data.sources, _shard_rows(store, settings, config.data.shard_rows))
    audit = Audit(store, config.audit)
    work = Work(config, {name: FeatureSet.of(s) for name, s in settings.items()}, worker)
    # The settings hold the fingerprints too, so that a model changed under an audit is refused like any change.
    outcome = {**outcome_settings(plain_values(config)), "fingerprints": work.fingerprints, **file_digests(queries)}
    require_comparable(audit, config.since, as_json(outcome, "config"))
    begin_audit(audit, outcome, [_planned(shard) for shard in plan])
    return Prepared(
        work=work,
        store=store,
        audit=audit,
        plan=plan,
        sources=len(inputs.data.sources),
        left_out=(*inputs.data.left_out, *_unused_model_files(denoiser)),
        settings=settings,
        queries=tuple(replace(query, method=method) for method in config.methods for query in queries),
        demand=demand(config, denoiser),
        resolution=denoiser.resolution,
        sizes={name: p.numel() for name, p in denoiser.parameters.items()},
    )


def _unused_model_files(denoiser: Denoiser) -> list[LeftOut]:
    """The files of a pipeline directory that are not loaded: other variants, a safety checker, notes."""
    names = getattr(denoiser, "unused_files", list)()
    reason = "of model.path that the model does not load"
    return [LeftOut("file", reason, len(names), tuple(names[:5]))] if names else []


def outcome_settings(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values without those that only decide how the work is done."""
    kept = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items() if k not in EXECUTION}
    for key in EXECUTION:
        group, _, name = key.partition(".")
        if name and isinstance(kept.get(group), dict):
            kept[group].pop(name, None)
    return kept


def _shard_rows(store: Store, settings: dict[str, dict[str, Any]], rows: int) -> int:
    """Rows of a shard in the feature sets of this audit; an existing feature set has fixed the number."""
    names = sorted(settings, key=lambda n: store.size(FeatureSet.of(settings[n]).settings_file) is None)
    fixed = dict[str, int]()
    for name in names:
        fixed[name] = rows = open_feature_set(store, settings[name], rows).shard_rows
    if len(set(fixed.values())) > 1:
        raise UserError(
            f"the features of these methods were cut into shards of different sizes ({fixed}); audit them apart"
        )
    return rows


def _planned(shard: Shard) -> dict[str, Any]:
    return {"shard": shard.name, "source": shard.source, "version": shard.version,
            "first_row": shard.first_row, "rows": shard.rows}  # fmt: skip


def _query(denoiser: Denoiser, concept: Concept, data: DataConfig) -> QueryTask:
    """The concept with the contents of its files, without a method."""
    require_conditioning(denoiser, concept)
    require_untruncated(denoiser, concept)
    for text, without in concept.condition_pairs:
        _require_direction(denoiser, concept, text, without)
    files = read_concept_files(denoiser, concept, data)
    return QueryTask("", concept, image=files.image, examples=files.examples, classifier=files.classifier)


def _require_direction(denoiser: Denoiser, concept: Concept, text: str, without: str) -> None:
    """Check that the model encodes the two conditions differently; a tokenizer may map two spellings to one."""
    if equal_conditions(denoiser.encode([text]), denoiser.encode([without])).all():
        raise UserError(
            f"concept {concept.name!r}: the model encodes {text!r} and {without!r} alike, so there is no direction "
            "between them; change the prompts"
        )


def file_digests(queries: Iterable[QueryTask]) -> dict[str, Any]:
    """A digest of the examples or the classifier of every concept with such files, because files may change."""
    files = {q.concept.name: (*q.examples, q.classifier) for q in queries if q.examples or q.classifier}
    digests = {name: sha256(b"".join(contents)).hexdigest() for name, contents in files.items()}
    return {"evidence": digests} if digests else {}
