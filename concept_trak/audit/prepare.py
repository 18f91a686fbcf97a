"""Everything that can be wrong is found here, before a worker starts: the store, the data, the model, the questions.

What a run will need, from its settings alone: printed before anything is computed.

What an audit asks: every concept with all that workers need of it, checked against the model, and as it is told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, equal_conditions, unprompted_texts
from concept_trak.attribution.method import Method
from concept_trak.attribution.query import (
    require_conditioning,
    require_conditions,
    require_query_direction,
    require_untruncated,
)
from concept_trak.audit.checks import require_batch_consistency, require_fit
from concept_trak.audit.diff import require_comparable
from concept_trak.audit.gram import Solution
from concept_trak.audit.plan import feature_bytes, feature_settings, shards, survey
from concept_trak.audit.query_features import Answer, Question
from concept_trak.audit.worker import Work, open_model
from concept_trak.config import AuditConfig, plain_values
from concept_trak.data.image import read_examples, read_file, read_image
from concept_trak.data.shard import Shard, cut
from concept_trak.models.classifier import open_classifier
from concept_trak.store.identity import as_json, fingerprint, open_feature_set
from concept_trak.store.manifest import Audit, begin_audit
from concept_trak.store.secrets import refuse_secrets
from concept_trak.store.store import Store
from jobs.configure import located

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
class Demand:
    """`parameters` attributable numbers in `tensors` tensors; bytes of one sample's feature and of one's gradient."""

    parameters: int
    tensors: int
    feature: int
    gradient: int


def demand(config: AuditConfig, denoiser: Denoiser) -> Demand:
    """A gradient counts whole, in the model's precision: layers keep theirs as products of two thin matrices where that
    is smaller, so a worker needs at most this for each sample of a batch, beside the model and its activations.
    """
    chosen = denoiser.parameters.values()
    parameters = sum(p.numel() for p in chosen)
    gradient = sum(p.numel() * p.element_size() for p in chosen)
    return Demand(parameters, len(chosen), feature_bytes(config, parameters), gradient)


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
    found = survey(config.data, denoiser.conditioning)
    require_conditions(denoiser, config.methods, config.concepts)
    identity = denoiser.identity()
    settings = {n: feature_settings(config, m, denoiser, identity) for n, m in config.methods.items()}
    asked = questions_of(denoiser, config.concepts)
    questions = tuple(replace(question, method=method) for method in config.methods for question in asked)
    if config.model.batch != 1:
        asking = [text for concept in config.concepts for pair in concept.askings for text in pair]
        texts = list(dict.fromkeys(asking)) or unprompted_texts(denoiser, ("0", "1"), 0)
        require_batch_consistency(denoiser, texts[: min(config.model.batch or TOGETHER, TOGETHER)])
    require_fit(denoiser, cut(next(source for source in found if source.rows), 1)[0], config.data)
    plan = shards(found, _shard_rows(store, settings, config.data.shard_rows))
    audit = Audit(store, config.audit)
    work = Work(config, {name: fingerprint(s) for name, s in settings.items()})
    # Fingerprints stand beside the settings, so that a model changed under an audit is refused like any change.
    standing = {**outcome_settings(plain_values(config)), "fingerprints": work.fingerprints, **evidence(asked)}
    require_comparable(audit, config.since, as_json(standing, "config"))
    begin_audit(audit, standing, [_planned(shard) for shard in plan])
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


def readable(size: float | int) -> str:
    """Bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def require_answers(methods: Mapping[str, Method], concepts: Sequence[Concept]) -> None:
    """That every row can be asked for every concept, and that the images asked about are pictures.

    Raises:
        ValueError: naming the concept.
    """
    for concept in concepts:
        for method in methods.values():
            require_query_direction(method, concept)
        if concept.image:
            read_image(concept.image)


def questions_of(denoiser: Denoiser, concepts: Sequence[Concept]) -> list[Question]:
    """The concepts, for no method yet, with their files, once the model can be asked for them.

    Raises:
        ValueError: the model cannot, or a file is not what it should be; the message names the concept.
    """
    return [_question(denoiser, concept) for concept in concepts]


def _question(denoiser: Denoiser, concept: Concept) -> Question:
    require_conditioning(denoiser, concept)
    require_untruncated(denoiser, concept)
    for text, without in concept.askings:
        _require_direction(denoiser, concept, text, without)
    question = Question("", concept, read_image(concept.image) if concept.image else b"")
    try:
        if concept.examples:
            question = replace(question, examples=read_examples(concept.examples, denoiser.resolution))
        if concept.classifier:
            question = replace(question, classifier=read_file(concept.classifier))
            open_classifier(question.classifier, concept.classifier, concept.shows, denoiser)
    except ValueError as error:
        raise ValueError(f"concept {concept.name!r}: {error}") from None
    return question


def _require_direction(denoiser: Denoiser, concept: Concept, text: str, without: str) -> None:
    """That the model tells two conditions apart; it may read two spellings as one text."""
    if equal_conditions(denoiser.encode([text]), denoiser.encode([without])).all():
        raise ValueError(
            f"concept {concept.name!r}: the model encodes {text!r} and {without!r} alike, so there is no direction "
            "between them; change the prompts"
        )


def evidence(asked: Iterable[Question]) -> dict[str, Any]:
    """A digest of the examples or the classifier of every concept given so: files that may change behind a name."""
    given = {q.concept.name: (*q.examples, q.classifier) for q in asked if q.examples or q.classifier}
    digests = {name: sha256(b"".join(files)).hexdigest() for name, files in given.items()}
    return {"evidence": digests} if digests else {}


def told_of(concept: Concept, answers: Mapping[tuple[str, str], Answer], methods: Iterable[str]) -> dict[str, Any]:
    """The question as it was asked: what the tool wrote out, and how far several phrasings agree, by method."""
    agreement = {method: list(answers[method, concept.name].agreement) for method in methods}
    return {
        "question": concept.question,
        "conditions": [{"prompt": text, "without": without} for text, without in concept.askings],
        "agreement": {method: cosines for method, cosines in agreement.items() if cosines},
    }


QUERY_KINDS = {"concept": "string", "method": "string", "phi": "vector", "solved": "vector", "residual": "float64",
               "lambda": "float64", "spread_solved": "float64", "spread_phi": "float64"}  # fmt: skip


def query_row(s: Solution, i: int, answer: Answer) -> dict[str, Any]:
    """phi_q, its solution, and how far its scores will spread (root mean square)."""
    asked = {"concept": answer.concept, "method": s.method, "phi": answer.phi, "solved": s.z[i]}
    solved = {"residual": s.residual[i], "lambda": s.lam}
    return {**asked, **solved, "spread_solved": s.spread[i][0], "spread_phi": s.spread[i][1]}
