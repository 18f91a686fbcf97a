"""How a concept is asked: the batch of its samples, and the states and direction of a row's query side for it.

Whether a model can be asked a question at all: a concept has to be said in what the model is conditioned on.

The conditioning of a text model is a prompt, that of a class-conditional model a label. An unconditional model has
neither, so no pair of conditions separates a concept from its absence. For such a model, give a concept by examples or
by a classifier, or ask about one image by a whole-image row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, negatives, unprompted_texts
from concept_trak.attribution.method import CONCEPT_DIRECTIONS, Method
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import generate

# Query images are generated, and local images inverted, without guidance: the states the condition itself leads to.
UNGUIDED = Probe("sampling", "concept_reward")
REWARDS = {"text": "concept_reward", "examples": "example_reward", "classifier": "classifier_reward"}
"""The direction of a query by what its concept is given by."""


def require_untruncated(denoiser: Denoiser, concept: Concept) -> None:
    """That the model reads every condition to its end.

    Raises:
        ValueError: it does not; the message names the concept, the tokens and the limit.
    """
    for text in dict.fromkeys(text for asking in concept.askings for text in asking):
        try:
            denoiser.require_whole(text)
        except ValueError as error:
            raise ValueError(f"concept {concept.name!r}: {error}") from None


def query_batch(
    denoiser: Denoiser,
    concept: Concept,
    pixels: Tensor | None = None,
    target: Tensor | None = None,
    judge: Callable[[Tensor], Tensor] | None = None,
) -> Batch:
    """The samples of a query; `pixels` [1, 3, h, w] is the image of a local one, which every phrasing asks about.

    `target` [c, h, w], the mean x_0 of the examples, and `judge`, from x_0hat [b, c, h, w] to the class's
    log-probability [b], serve concepts given so. A query's samples are named by their number, so that concepts with
    one seed share their noise; sample i asks the way i mod the number of phrasings. Without texts the samples are the
    model's own: unconditional, or of conditions it knows.

    Raises:
        ValueError: the model does not read all of a condition; a concept cut short is another concept.
    """
    require_untruncated(denoiser, concept)
    ways = concept.askings
    count = concept.count
    ids = tuple(f"query-{i}" for i in range(count))
    asked = [ways[i % len(ways)] for i in range(count)] if ways else []
    texts = [text for text, _ in asked] or unprompted_texts(denoiser, ids, concept.seed)
    without = denoiser.encode([other for _, other in asked]) if ways else None
    negative = negatives(denoiser, ids, texts, concept.seed)
    x_0 = None if pixels is None else denoiser.to_latent(pixels.to(denoiser.device, denoiser.dtype))
    x_0 = None if x_0 is None else x_0.expand(count, *x_0.shape[1:])
    return Batch(ids, denoiser.encode(texts), negative, x_0, without, target=target, judge=judge)


def resolve_query(denoiser: Denoiser, method: Method, concept: Concept, batch: Batch) -> tuple[Method, Batch]:
    """The method and batch as the concept needs them.

    Without texts the concept reward becomes that of `REWARDS`. Local: sampling becomes the inversion of the image,
    unguided and deterministic. Global with a whole-image row: the samples are the images generated for the condition,
    captioned so.
    """
    require_query_direction(method, concept)
    if method.query.direction == "concept_reward":
        method = replace(method, query=replace(method.query, direction=REWARDS.get(concept.kind, "concept_reward")))
    if method.query.trajectory == "sampling":
        if concept.scope == "global":
            return method, batch
        local = replace(method.query, trajectory="ddim_inversion", guidance=1.0, eta=0.0)
        return replace(method, query=local), batch
    if batch.x_0 is not None:
        return method, batch
    return method, replace(
        batch, x_0=generate(denoiser, batch, UNGUIDED, concept.seed).to(torch.float32).to(denoiser.dtype)
    )


def require_query_direction(method: Method, concept: Concept) -> None:
    """That a row can be asked for a concept.

    Raises:
        ValueError: a row without a concept's reward would answer about pictures of the model's own choice.
    """
    if concept.kind in ("examples", "classifier") and method.query.direction not in CONCEPT_DIRECTIONS:
        raise ValueError(
            f"concept {concept.name!r} is given by {concept.kind}, and a row whose query side is "
            f"{method.query.trajectory} · {method.query.direction} asks about the pictures of a prompt; choose a row "
            "with the query side sampling · concept_reward, such as concept_trak"
        )


BY_CONDITION = ("concept_reward", "caption_reward", "caption_fit")
"""Directions from one condition to another."""


def require_conditioning(denoiser: Denoiser, concept: Concept) -> None:
    """Refuse a concept that is not given in the model's conditioning.

    Raises:
        ValueError: the message names the concept, the model's conditioning, and the keys to use.
    """
    if concept.kind in ("examples", "classifier"):
        return
    told = "prompt" if concept.prompt else "labels" if concept.labels else "nothing"
    expected = {"text": "prompt", "class": "labels", "none": "nothing"}[denoiser.conditioning]
    if told == expected:
        return
    remedy = {
        "text": "the model's conditioning is text: give prompt and without_prompt",
        "class": "the model's conditioning is a class: give labels and without_labels, each a class's number or name",
        "none": "the model has no conditioning: give examples or a classifier, or ask about an image alone (scope: "
        "local, image: picture.png, neither prompt nor labels) with a whole-image row such as method=das",
    }[denoiser.conditioning]
    said = f"{told}={concept.text!r}" if concept.text else "neither prompt nor labels"
    raise ValueError(f"concept {concept.name!r}: it has {said}, and {remedy}")


def require_conditions(denoiser: Denoiser, methods: Mapping[str, Method], concepts: Sequence[Concept] = ()) -> None:
    """That no row points from one condition to another where the model has none.

    Examples and a classifier bring a reward of their own in place of `concept_reward`.

    Raises:
        ValueError: naming the row, its direction, and rows that can be used.
    """
    if denoiser.conditioning != "none":
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


def require_prompt_pairs(concepts: Sequence[Concept]) -> None:
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
