"""What an audit asks: every concept with all that workers need of it, checked against the model, and as it is told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from concept_trak.asking import require_answer, require_whole
from concept_trak.concept import Concept
from concept_trak.data.evidence import examples, whole_file
from concept_trak.data.image import read
from concept_trak.denoiser import Denoiser, same
from concept_trak.hearing import require_heard
from concept_trak.judge import open_judge
from concept_trak.method import Method
from concept_trak.query import Answer, Question
from concept_trak.reduction import Solution


def require_answers(methods: Mapping[str, Method], concepts: Sequence[Concept]) -> None:
    """That every row can be asked for every concept, and that the images asked about are pictures.

    Raises:
        ValueError: naming the concept.
    """
    for concept in concepts:
        for method in methods.values():
            require_answer(method, concept)
        if concept.image:
            read(concept.image)


def questions_of(denoiser: Denoiser, concepts: Sequence[Concept]) -> list[Question]:
    """The concepts, for no method yet, with their files, once the model can be asked for them.

    Raises:
        ValueError: the model cannot, or a file is not what it should be; the message names the concept.
    """
    return [_question(denoiser, concept) for concept in concepts]


def _question(denoiser: Denoiser, concept: Concept) -> Question:
    require_heard(denoiser, concept)
    require_whole(denoiser, concept)
    for text, without in concept.askings:
        _require_direction(denoiser, concept, text, without)
    question = Question("", concept, read(concept.image) if concept.image else b"")
    try:
        if concept.examples:
            question = replace(question, examples=examples(concept.examples, denoiser.resolution))
        if concept.classifier:
            question = replace(question, classifier=whole_file(concept.classifier))
            open_judge(question.classifier, concept.classifier, concept.shows, denoiser)
    except ValueError as error:
        raise ValueError(f"concept {concept.name!r}: {error}") from None
    return question


def _require_direction(denoiser: Denoiser, concept: Concept, text: str, without: str) -> None:
    """That the model tells two conditions apart; it may read two spellings as one text."""
    if same(denoiser.encode([text]), denoiser.encode([without])).all():
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
