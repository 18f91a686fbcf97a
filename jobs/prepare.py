"""Everything that can be wrong is found here, before a worker starts: the store, the data, the model, the questions."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from concept_trak.config import AuditConfig, ModelConfig
from concept_trak.data.shard import Shard, cut
from concept_trak.demand import Demand, demand
from concept_trak.hearing import require_conditions
from concept_trak.negative import own_texts
from concept_trak.plan import feature_settings, shards, survey
from concept_trak.precedent import require_comparable
from concept_trak.preflight import require_batch_consistency, require_fit
from concept_trak.query import Question
from concept_trak.stages import Work, open_model
from concept_trak.store.commit import Store
from concept_trak.store.identity import as_json, fingerprint, open_feature_set
from concept_trak.store.manifest import Audit, begin
from concept_trak.store.secrets import refuse_secrets
from jobs.configure import absolute, plain_values
from jobs.questions import evidence, questions_of, require_answers
from jobs.tick import named

TOGETHER = 8
"""Prompts predicted together and alone before an audit: two see each other already, and each costs two evaluations."""
# What may differ between two runs of one audit: how the work is done, never what comes out.
EXECUTION = (
    "store",
    "cluster",
    "budget",
    "interval",
    "preflight",
    "keep_states",
    "model.batch",
    "model.device",
    "data.shard_rows",
)


@dataclass(frozen=True)
class Prepared:
    """An audit that can run."""

    work: Work
    store: Store
    audit: Audit
    plan: list[Shard]
    sources: int
    settings: dict[str, dict[str, Any]]
    questions: tuple[Question, ...]
    demand: Demand
    resolution: int
    sizes: dict[str, int]
    """The attributable parameters, by name and number of scalars, in the model's order."""

    @property
    def config(self) -> AuditConfig:
        return self.work.config

    @property
    def parameters(self) -> int:
        return self.demand.parameters

    @property
    def samples(self) -> int:
        return sum(shard.rows for shard in self.plan)


def prepare(config: AuditConfig) -> Prepared:
    """Check a configuration against the world, name its features, cut its plan, and begin its audit in the store.

    Raises:
        ValueError: with one message that says what, what was expected, and what to do.
    """
    config = located(config.complete())
    refuse_secrets(plain_values(config))  # before a message or a file could show one
    require_answers(config.methods, config.concepts)
    store = Store(config.store)
    store.probe()
    denoiser = open_model(config)
    found = survey(config.data, denoiser.hears)
    require_conditions(denoiser, config.methods, config.concepts)
    identity = denoiser.identity()
    settings = {n: feature_settings(config, m, denoiser, identity) for n, m in config.methods.items()}
    asked = questions_of(denoiser, config.concepts)
    questions = tuple(replace(question, method=method) for method in config.methods for question in asked)
    if config.model.batch != 1:
        asking = [text for concept in config.concepts for pair in concept.askings for text in pair]
        texts = list(dict.fromkeys(asking)) or own_texts(denoiser, ("0", "1"), 0)
        require_batch_consistency(denoiser, texts[: min(config.model.batch or TOGETHER, TOGETHER)])
    require_fit(denoiser, cut(next(source for source in found if source.rows), 1)[0], config.data)
    plan = shards(found, _shard_rows(store, settings, config.data.shard_rows))
    audit = Audit(store, config.audit)
    work = Work(config, {name: fingerprint(s) for name, s in settings.items()})
    # Fingerprints stand beside the settings, so that a model changed under an audit is refused like any change.
    standing = {**outcome_settings(plain_values(config)), "fingerprints": work.fingerprints, **evidence(asked)}
    require_comparable(audit, config.since, as_json(standing, "config"))
    begin(audit, standing, [_planned(shard) for shard in plan])
    return Prepared(
        *(work, store, audit, plan, len(found), settings, questions, demand(config, denoiser), denoiser.resolution),
        {name: p.numel() for name, p in denoiser.parameters.items()},
    )


def outcome_settings(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values without those that only say how the work is done."""
    kept = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items() if k not in EXECUTION}
    for key in EXECUTION:
        group, _, name = key.partition(".")
        if name and isinstance(kept.get(group), dict):
            kept[group].pop(name, None)
    return kept


def located(config: AuditConfig) -> AuditConfig:
    """The same configuration with paths that mean the same everywhere, and with a name.

    Raises:
        ValueError: a relative path or an undeclared local store on a cluster of several machines; `memory` with
        workers elsewhere.
    """
    kind = config.cluster.kind
    if kind == "ray":
        for key, value in (("store", config.store), ("data.uri", config.data.uri), *_of_model(config.model)):
            if value and "://" not in value and not Path(value).is_absolute():
                raise ValueError(f"{key}={value!r} is another folder on each node; give an absolute path or a URL")
        if Store(config.store).scheme == "file" and not config.cluster.shared_store:
            raise ValueError(
                f"store={config.store!r} is a folder: if every node sees the same one, say cluster.shared_store=true; "
                "else use an object store such as s3://bucket/prefix"
            )
    if config.store.startswith("memory://") and kind != "serial":
        raise ValueError(f"store={config.store!r} lives in one process; use it with cluster=serial, or choose a folder")
    now = datetime.now(UTC)
    audit = named(config.audit, now) or now.strftime("%Y%m%dT%H%M%SZ")
    model, data = (
        _placed(config.model),
        replace(config.data, uri=absolute(config.data.uri)),
    )
    return replace(config, audit=audit, store=absolute(config.store), model=model, data=data)


def _of_model(model: ModelConfig) -> list[tuple[str, str]]:
    """(key, path) of everything that the model is read from."""
    return [
        *((f"model.{key}", getattr(model, key)) for key in ("path", "weights", "lora")),
        *(("model.embeddings", path) for path in model.embeddings),
    ]


def _placed(model: ModelConfig) -> ModelConfig:
    more = {key: absolute(value) for key in ("weights", "lora") if (value := getattr(model, key))}
    embeddings = tuple(absolute(path) for path in model.embeddings)
    return replace(model, path=absolute(model.path), embeddings=embeddings, **more)


def _shard_rows(store: Store, settings: dict[str, dict[str, Any]], asked: int) -> int:
    """The rows a shard has in the feature sets of this audit; one that exists has fixed it."""
    names = sorted(settings, key=lambda n: store.size(f"features/{fingerprint(settings[n])}/feature_set.json") is None)
    rows = asked
    fixed: dict[str, int] = {}
    for name in names:
        fixed[name] = rows = open_feature_set(store, settings[name], rows).shard_rows
    if len(set(fixed.values())) > 1:
        raise ValueError(
            f"the features of these methods were cut into shards of different sizes ({fixed}); audit them apart"
        )
    return rows


def _planned(shard: Shard) -> dict[str, Any]:
    return {"shard": shard.name, "source": shard.source, "version": shard.version,
            "first_row": shard.first_row, "rows": shard.rows}  # fmt: skip
