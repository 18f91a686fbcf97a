"""Checks an audit and begins it, before any gradient is computed. `prepare` does this in four steps:

1. `resolve` makes the addresses of the configuration absolute.
2. `open_inputs` opens the store and the model; `check_queries` and `check_settings` check the configuration with them.
3. `open_data` indexes new sources on workers; `check_data` checks that the model takes the data.
4. `begin_prepared` creates the feature sets, and writes the audit's settings and plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser, unprompted_texts
from concept_trak.audit.checks import require_batch_consistency, require_fit, warn_of_prediction_type
from concept_trak.audit.diff import require_comparable
from concept_trak.audit.index import IndexReader, note_listing, open_data
from concept_trak.audit.mapper import Mapper, Stopped, serial
from concept_trak.audit.plan import Demand, demand, feature_settings, shards
from concept_trak.audit.query_features import QueryTask, file_digests, grouped, open_questions
from concept_trak.audit.resolve import require_apart, resolve
from concept_trak.audit.status import require_new_name
from concept_trak.audit.worker import Work, open_model
from concept_trak.config import AuditConfig, WorkerSettings, plain_values
from concept_trak.data.image_reads import describe_reads
from concept_trak.data.inventory import LeftOut, Survey
from concept_trak.data.shard import Shard, cut
from concept_trak.store.codec import MAX_PART_BYTES
from concept_trak.store.identity import FeatureSet, as_json, open_feature_set
from concept_trak.store.manifest import Audit, begin_audit, remove_unbegun, require_same_settings
from concept_trak.store.store import Store

TOGETHER = 8
"""The most prompts that are predicted as a batch and one by one, to check that a prediction does not depend on its
batch. Two would show it; each costs two evaluations."""
# Settings that may differ between two runs of one audit, because no result depends on them.
EXECUTION = ("store", "keep_states", "model.batch", "model.device", "model.offload", "data.shard_rows")


@dataclass(frozen=True)
class Prepared:
    """An audit that passed all checks, with everything that its stages need.

    Attributes:
        work: the settings for the workers.
        settings: by method, the settings that its features depend on.
        queries: a query for each concept and each group of methods that share its states.
        demand: the numbers from which the needed memory follows.
        resolution: the side of the model's images, in pixels.
    """

    work: Work
    store: Store
    audit: Audit
    plan: list[Shard]
    data: Survey
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
    def sources(self) -> int:
        return len(self.data.sources)

    @cached_property
    def samples(self) -> int:
        return sum(shard.rows for shard in self.plan)

    @property
    def shard_rows(self) -> int:
        """Rows of the largest shard."""
        return max(shard.rows for shard in self.plan)

    @property
    def reads_note(self) -> str:
        """A line about images that are read more than once; "" where they are not."""
        return describe_reads(self.data.sources, self.shard_rows, MAX_PART_BYTES // max(1, self.demand.feature))


def prepare(
    config: AuditConfig,
    worker: WorkerSettings = WorkerSettings(),
    mapper: Mapper = serial,
    indices: Store | None = None,
) -> Prepared:
    """Check a configuration, its model and its data, cut the data into shards, and begin the audit in the store.

    Args:
        config: what the audit is.
        worker: what one worker may use of its machine.
        mapper: where new sources are indexed.
        indices: the store with the indices of the data; None for the audit's own.

    Raises:
        UserError: the configuration, the store, the model or the data cannot be used; the message has what was
            expected, and what to do.
        Stopped: the index of the data could not be finished.
    """
    config = resolve(config)
    inputs = open_inputs(config, worker)
    try:
        return _prepared(config, worker, mapper, inputs, indices or inputs.store)
    except (UserError, Stopped) as error:
        if not isinstance(error, Stopped) or error.exit_code == 2:
            remove_unbegun(Audit(inputs.store, config.audit))  # what was noted while the data were indexed
        raise


def _prepared(
    config: AuditConfig, worker: WorkerSettings, mapper: Mapper, inputs: "Inputs", indices: Store
) -> Prepared:
    queries = check_queries(config, inputs)
    settings = check_settings(config, inputs, queries)
    data = open_data(indices, config.data, inputs.denoiser.conditioning, mapper)
    begun = inputs.store.size(Audit(inputs.store, config.audit).name("plan.parquet")) is not None
    if not (begun or _has_features(config, inputs, data, settings)):  # else they were checked before
        check_data(config, inputs, data, IndexReader(indices))
    return begin_prepared(config, worker, inputs, settings, data, queries)


def _has_features(config: AuditConfig, inputs: "Inputs", data: Survey, settings: dict[str, dict[str, Any]]) -> bool:
    """Whether the first shard has features of every method, so that an audit with this model has read these data."""
    shard = cut(next(source for source in data.sources if source.rows), config.data.shard_rows)[0]
    sets = [FeatureSet.of(each) for each in settings.values()]
    return all(inputs.store.size(features.record(shard.name)) is not None for features in sets)


@dataclass(frozen=True)
class Inputs:
    """The store and the model, which are opened before the data."""

    store: Store
    denoiser: Denoiser


def open_inputs(config: AuditConfig, worker: WorkerSettings) -> Inputs:
    """Open the store and the model.

    Raises:
        UserError: one of them is missing or cannot be read.
    """
    require_apart(config.store, config.model, config.data.uri)
    store = Store(config.store)
    store.probe()
    require_new_name(Audit(store, config.audit))
    denoiser = open_model(config.model, worker, config.data.frames)
    return Inputs(store, denoiser)


def check_queries(config: AuditConfig, inputs: Inputs) -> list[QueryTask]:
    """Check that the model can answer the concepts. Returns their queries, which have no methods yet.

    Raises:
        UserError: it cannot; the message names the concept or the method.
    """
    denoiser = inputs.denoiser
    queries = open_questions(denoiser, config)
    if config.model.batch != 1:
        prompts = [text for concept in config.concepts for pair in concept.condition_pairs for text in pair]
        texts = list(dict.fromkeys(prompts)) or unprompted_texts(denoiser, ("0", "1"), 0)
        require_batch_consistency(denoiser, texts[: min(config.model.batch or TOGETHER, TOGETHER)])
    return queries


def check_settings(config: AuditConfig, inputs: Inputs, queries: Sequence[QueryTask]) -> dict[str, dict[str, Any]]:
    """Check that the audit can begin or resume with this configuration. Returns the settings of each method's features.

    Raises:
        UserError: the audit exists with other settings, or cannot be compared with the one that `since` names.
    """
    denoiser, audit = inputs.denoiser, Audit(inputs.store, config.audit)
    identity = denoiser.identity()
    settings = {n: feature_settings(config, m, denoiser, identity) for n, m in config.methods.items()}
    outcome = as_json(_outcome(config, settings, queries), "config")
    require_comparable(audit, config.since, outcome)
    require_same_settings(audit, outcome)
    return settings


def _outcome(config: AuditConfig, settings: dict[str, dict[str, Any]], queries: Sequence[QueryTask]) -> dict[str, Any]:
    """The settings that decide the results. Because of the fingerprints in them, a changed model is refused too."""
    fingerprints = {name: FeatureSet.of(s).fingerprint for name, s in settings.items()}
    return {**outcome_settings(plain_values(config)), "fingerprints": fingerprints, **file_digests(queries)}


def check_data(config: AuditConfig, inputs: Inputs, data: Survey, index: IndexReader) -> None:
    """Check that the model takes the first samples of the data. Raises UserError, which names the size."""
    first = next(source for source in data.sources if source.rows)
    require_fit(inputs.denoiser, index(cut(first, 1)[0]), config.data)
    warn_of_prediction_type(inputs.denoiser, index(cut(first, 2)[0]), config.data)


def begin_prepared(
    config: AuditConfig,
    worker: WorkerSettings,
    inputs: Inputs,
    settings: dict[str, dict[str, Any]],
    data: Survey,
    queries: Sequence[QueryTask],
) -> Prepared:
    """Create the feature sets, cut the plan, and write the audit's settings and plan to the store.

    Raises:
        UserError: the audit exists with other settings or another plan.
    """
    store, denoiser = inputs.store, inputs.denoiser
    plan = shards(data.sources, _shard_rows(store, settings, config.data.shard_rows))
    audit = Audit(store, config.audit)
    work = Work(config, {name: FeatureSet.of(s) for name, s in settings.items()}, worker)
    note_listing(store, config.data, data, plan)
    begin_audit(audit, _outcome(config, settings, queries), [_planned(shard) for shard in plan])
    return Prepared(
        work=work,
        store=store,
        audit=audit,
        plan=plan,
        data=data,
        left_out=(*data.left_out, *_unused_model_files(denoiser)),
        settings=settings,
        queries=grouped(queries, config.methods),
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
    settings = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items() if k not in EXECUTION}
    for key in EXECUTION:
        group, _, name = key.partition(".")
        if name and isinstance(settings.get(group), dict):
            settings[group].pop(name, None)
    return settings


def _shard_rows(store: Store, settings: dict[str, dict[str, Any]], rows: int) -> int:
    """The rows of a shard: `rows`, unless a feature set of this audit exists, which has fixed the number."""
    names = sorted(settings, key=lambda n: store.size(FeatureSet.of(settings[n]).settings_file) is None)
    fixed = dict[str, int]()
    for name in names:
        fixed[name] = rows = open_feature_set(store, settings[name], rows).shard_rows
    if len(set(fixed.values())) > 1:
        raise UserError(
            f"the features of these methods were cut into shards of different sizes ({fixed}); audit each by itself"
        )
    return rows


def _planned(shard: Shard) -> dict[str, Any]:
    return {"shard": shard.name, "source": shard.source, "version": shard.version,
            "first_row": shard.first_row, "rows": shard.rows}  # fmt: skip
