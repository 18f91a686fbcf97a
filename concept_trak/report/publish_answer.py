"""A question to a finished audit, from its settings to lines of text and, on demand, a table and a page."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.audit.answer import Answer
from concept_trak.audit.finished_audit import open_audit
from concept_trak.audit.layer_scores import FILE as JOINT_FILE
from concept_trak.audit.questions import MovedModel, Questions
from concept_trak.config import absolute
from concept_trak.report.answer_in_words import overlap_line
from concept_trak.report.build_audit_page import page
from concept_trak.report.publish_audit import certainty_facts, concept_lines
from concept_trak.report.render import render
from concept_trak.store.store import Store
from concept_trak.store.tables import to_parquet

TABLE, LAYERS, PAGE = "top.parquet", JOINT_FILE, "report.html"


@dataclass(frozen=True)
class AskConfig:
    """One question to a finished audit."""

    store: str = "results"
    """The folder or object-store URL of the audit."""
    audit: str = ""
    """The name of the audit, which must be finished."""
    prompt: str = ""
    """The condition with the concept: a red triangle. Or give labels, examples, a classifier, or an image alone."""
    without: str = ""
    """The same condition without the concept: a triangle; empty is the model's empty condition."""
    minus: str = ""
    """Instead of `without`: a phrase that is removed from the prompt."""
    labels: str = ""
    """Instead of `prompt`, for class-conditional models: the number or name of a class."""
    image: str = ""
    """An image: the question is about the concept in this one image."""
    conditioning_image: str = ""
    """For a model with a ControlNet or an IP-Adapter: the image that both conditions share."""
    examples: str | tuple[str, ...] = ()
    """Pictures that show the concept, or folders of them."""
    classifier: str = ""
    """A .safetensors file; `shows` names its class that is the concept."""
    shows: str = ""
    name: str = "question"
    """What the concept is called in the answer."""
    samples: int = 16
    """Number of samples that the query averages over."""
    seed: int = 0
    """Seed of their noise."""
    method: str | tuple[str, ...] = ()
    """One or several of the audit's methods; empty is all of them."""
    top: int = 10
    """Number of the best and of the worst samples."""
    out: str = ""
    """A folder for the answer as `top.parquet`, `joint.parquet` (its layers) and a page; empty only prints it."""
    model: MovedModel = field(default_factory=MovedModel)

    @property
    def concept(self) -> Concept:
        """The concept asked about.

        Raises:
            UserError: a field is missing, or two contradict each other.
        """
        return Concept(
            name=self.name,
            prompt=self.prompt,
            without_prompt="" if self.labels else self.without,
            labels=self.labels,
            without_labels=self.without if self.labels else "",
            scope="local" if self.image else "global",
            samples=self.samples,
            seed=self.seed,
            image=self.image,
            conditioning_image=self.conditioning_image,
            minus=self.minus,
            examples=_names(self.examples),
            classifier=self.classifier,
            shows=self.shows,
        )


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name or several; none for an empty one."""
    return ((value,) if value else ()) if isinstance(value, str) else value


def answer_question(config: AskConfig) -> Iterator[str]:
    """Ask, and write the answer where `out` says; lines of text about it.

    Raises:
        UserError: something about the audit, the question or the model is wrong.
        Damaged: a file of the audit is not as it was written.
    """
    if not config.audit:
        raise UserError("which audit is asked? audit=AUDIT; `python -m jobs.status` lists them")
    concept, out = config.concept, Store(absolute(config.out)) if config.out else None
    if out is not None:
        _require_free(out)
    questions = Questions(open_audit(absolute(config.store), config.audit), config.model)
    pictured = min(config.top, questions.config.shown) if out is not None else 0
    answer = questions.ask([concept], _names(config.method), config.top, pictured)
    yield from describe(answer)
    if out is not None:
        for name in write_answer(answer, out):
            yield f"written    {out.uri.removeprefix('file://')}/{name}"


def describe(answer: Answer) -> Iterator[str]:
    """The best samples of every concept and method, as after an audit, and how long each step took."""
    config, results = answer.run.prepared.config, answer.results
    best = answer.top().to_pylist()
    for concept in config.concepts:
        agreement = {method: results.queries[method, concept.name].agreement for method in config.methods}
        certainty = certainty_facts(concept, config, results)
        yield from concept_lines(concept, config.methods, best, {}, agreement, certainty)
        yield from layer_lines(answer, concept.name)
        for overlap in answer.comparisons[concept.name]:
            yield f"  {overlap_line(overlap)}"
    yield f"\ntime       {', '.join(f'{seconds:.2g} s {step}' for step, seconds in answer.seconds.items())}"


def layer_lines(answer: Answer, concept: str) -> Iterator[str]:
    """By method, the parts of the network in which its best scores are largest; nothing if layers are mixed."""
    for method in answer.run.prepared.config.methods:
        samples = [sample for _, sample, _ in answer.results.tally.ends[method, concept].top]
        parts = answer.results.layers.strongest(method, concept, "damped", samples)
        if parts:
            shares = ", ".join(f"{part.part} {part.share:.0%}" for part in parts)
            yield f"  {method}: of the top's scores, {shares}"


def write_answer(answer: Answer, out: Store) -> list[str]:
    """Write the tables and the page; returns their names.

    Raises:
        UserError: there is another answer.
    """
    files = {TABLE: to_parquet(answer.table), PAGE: render(page(answer.run, answer.results)).encode()}
    if answer.results.layers.parts is not None:
        files[LAYERS] = to_parquet(answer.layers)
    for name, data in files.items():
        if not out.create(name, data):
            raise _taken(out, name)
    return list(files)


def _require_free(out: Store) -> None:
    for name in (TABLE, LAYERS, PAGE):
        if out.size(name) is not None:
            raise _taken(out, name)


def _taken(out: Store, name: str) -> UserError:
    return UserError(f"out={out.uri}: there is a {name}, which is not replaced; give another folder, or remove it")
