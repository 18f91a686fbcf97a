"""Whether a model can be asked a question at all: a concept has to be said in what the model is conditioned on.

Text models hear a prompt, class-conditional ones a label. An unconditional model hears nothing: no condition tells a
concept from its absence. It can be asked for what examples or a classifier show, or, by a whole-image row, for
what an image itself says.
"""

from collections.abc import Mapping, Sequence

from concept_trak.concept import Concept
from concept_trak.denoiser import Denoiser
from concept_trak.method import Method

BY_CONDITION = ("concept_reward", "caption_reward", "caption_fit")
"""Directions from one condition to another."""


def require_heard(denoiser: Denoiser, concept: Concept) -> None:
    """That the concept is said in what the model hears.

    Raises:
        ValueError: naming the concept, what the model hears, and the keys to use.
    """
    if concept.kind in ("examples", "classifier"):
        return
    told = "prompt" if concept.prompt else "labels" if concept.labels else "nothing"
    expected = {"text": "prompt", "labels": "labels", "nothing": "nothing"}[denoiser.hears]
    if told == expected:
        return
    remedy = {
        "text": "the model listens to text: give prompt and without_prompt",
        "labels": "the model listens to classes: give labels and without_labels, a number or name of a class each",
        "nothing": "the model is unconditional and listens to nothing: give examples or a classifier, or ask about an "
        "image alone (scope: local, image: picture.png, neither prompt nor labels) with a whole-image row such as "
        "method=das",
    }[denoiser.hears]
    said = f"{told}={concept.text!r}" if concept.text else "neither prompt nor labels"
    raise ValueError(f"concept {concept.name!r}: it has {said}, and {remedy}")


def require_conditions(denoiser: Denoiser, methods: Mapping[str, Method], concepts: Sequence[Concept] = ()) -> None:
    """That no row points from one condition to another where the model has none.

    Examples and a classifier bring a reward of their own in place of `concept_reward`.

    Raises:
        ValueError: naming the row, its direction, and rows that can be used.
    """
    if denoiser.hears != "nothing":
        return
    rewarded = all(concept.kind in ("examples", "classifier") for concept in concepts) and bool(concepts)
    for name, method in methods.items():
        for side, probe in (("train", method.train), ("query", method.query)):
            if probe.direction in BY_CONDITION and not (rewarded and probe.direction == "concept_reward"):
                raise ValueError(
                    f"method={name}: its {side} side, {probe.direction}, points from one condition to another, and the "
                    "model is unconditional and has none; choose a whole-image row: trak, d_trak or das. For concepts "
                    "given by examples or a classifier: concept_trak, or concept_a, concept_b or concept_c"
                )


def require_pairs(concepts: Sequence[Concept]) -> None:
    """That each is one condition against another, which is what components compare.

    Raises:
        ValueError: naming a concept that is given otherwise.
    """
    for concept in concepts:
        if concept.kind != "text" or concept.phrasings:
            raise ValueError(
                f"concept {concept.name!r}: components compare two conditions; give one prompt and the same without "
                "the concept, and each phrasing as a concept of its own"
            )
