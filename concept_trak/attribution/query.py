"""A concept as a query: its samples, the states and the direction that a method uses for it, and its features.

The feature of a query is the mean over its phrasings; the feature of a phrasing is the mean over its samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Condition, Denoiser, empty_images, negatives, unprompted_texts
from concept_trak.attribution.features import Features
from concept_trak.attribution.method import CONCEPT_DIRECTIONS, Method
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import generate

# Query images are generated and local images inverted without guidance, so the states depend on the condition only.
UNGUIDED = Probe("sampling", "concept_reward")
REWARDS = {"text": "concept_reward", "examples": "example_reward", "classifier": "classifier_reward"}
"""The direction of a query by `Concept.kind`."""
BETWEEN_CONDITIONS = ("concept_reward", "caption_reward", "caption_fit")
"""Directions from one condition to another."""


def query_batch(
    denoiser: Denoiser,
    concept: Concept,
    pixels: Float[Tensor, "1 3 height width"] | None = None,
    targets: Float[Tensor, "g c *space"] | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    conditioning: Float[Tensor, "1 3 height width"] | None = None,
) -> Batch:
    """The samples of a query.

    The samples are named by their number, so concepts with the same seed share their noise. Sample i has the phrasing
    i mod the number of phrasings. A concept without texts gets conditions from the model: the empty one, or drawn ones.

    Args:
        pixels: the image of a concept with `scope=local`, in [-1, 1].
        targets: for a concept given by examples, the mean x_0 of each of g groups of them (`mean_latent`). Sample i has
            group i mod g, as `uncertainty.query_groups` divides the samples.
        classifier: for a concept given by a classifier, the function from x_0hat [b, c, h, w] to the log-probability
            of the concept's class [b].
        conditioning: for a model that takes an image, the one that both conditions of the concept share, in [-1, 1].

    Raises:
        UserError: the model would truncate a condition, which would make it a different concept; or its image is
            missing.
    """
    require_untruncated(denoiser, concept)
    count = concept.count
    ids = tuple(f"query-{i}" for i in range(count))
    texts, withouts = _texts(concept)
    texts = texts or unprompted_texts(denoiser, ids, concept.seed)
    shared = _image_condition(denoiser, concept, conditioning)
    x_0 = None if pixels is None else denoiser.to_latent(pixels.to(denoiser.device, denoiser.dtype))
    return Batch(
        ids=ids,
        cond=denoiser.encode(texts) | shared,
        negative=shared | negatives(denoiser, ids, texts, concept.seed),
        x_0=None if x_0 is None else x_0.expand(count, *x_0.shape[1:]),
        without=empty_images(denoiser, denoiser.encode(withouts) | shared, withouts) if withouts else None,
        target=None if targets is None else targets[[i % len(targets) for i in range(count)]],
        classifier=classifier,
    )


def _texts(concept: Concept) -> tuple[list[str], list[str]]:
    """The first and the second text of each sample's pair of conditions; none for a concept without texts."""
    pairs = concept.condition_pairs
    of_samples = [pairs[i % len(pairs)] for i in range(concept.count)] if pairs else []
    return [text for text, _ in of_samples], [without for _, without in of_samples]


def _image_condition(denoiser: Denoiser, concept: Concept, pixels: Tensor | None) -> Condition:
    """The parts of a condition that the concept's conditioning image makes, for each sample; {} without an image."""
    if pixels is None:
        if denoiser.takes_image:
            raise UserError(
                f"concept {concept.name!r}: the model takes a conditioning image, and only audits and an Attributor "
                "give it one; use these"
            )
        return {}
    parts = denoiser.encode_image(pixels.to(denoiser.device, denoiser.dtype))
    return {name: value.expand(concept.count, *value.shape[1:]) for name, value in parts.items()}


def resolve_query(denoiser: Denoiser, method: Method, concept: Concept, batch: Batch) -> tuple[Method, Batch]:
    """The method and the batch, adapted to the concept.

    For a concept without texts, the direction of `REWARDS` replaces the concept reward. For `scope=local`, the
    inversion of the image, unguided and deterministic, replaces sampling. For `scope=global`, a method that starts from
    images gets images that the model generates for the condition, with the condition as their caption.
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
    images = generate(denoiser, batch, UNGUIDED, concept.seed)
    return method, replace(batch, x_0=images.to(torch.float32).to(denoiser.dtype))


def phrasing_features(denoiser: Denoiser, concept: Concept, features: Features) -> Float[Tensor, "phrasings k"]:
    """The mean feature of each phrasing; the query's feature is the mean of these.

    Args:
        features: the features of the query's samples, from `query_paths.query_features`.

    Raises:
        UserError: a phrasing has no direction at any state, or its feature is not finite.
    """
    count = max(1, len(concept.condition_pairs))
    means = torch.stack([features.phi[i::count].mean(0) for i in range(count)])
    for i in range(count):
        if not torch.isfinite(means[i]).all():
            raise UserError(f"concept {concept.name!r}: {_not_finite(concept, denoiser.dtype)}")
        if not (features.states[i::count] > 0).any():
            raise UserError(f"concept {concept.name!r}: {_without_direction(concept, i)}")
    return means


def _not_finite(concept: Concept, dtype: torch.dtype) -> str:
    """A message: why the feature of a query has NaN or infinite numbers, and the remedy."""
    if concept.kind == "classifier":
        return f"the gradient of log p({concept.shows!r}) is not finite; train a classifier that is less certain"
    wider = "; set model.precision=float32" if dtype in (torch.float16, torch.bfloat16) else ""
    return (
        f"its feature is not finite: the model's predictions overflow or are undefined in {dtype} at some "
        f"state{wider}; expected finite predictions at every state of the method"
    )


def _without_direction(concept: Concept, phrasing: int) -> str:
    """A message: why a query has no feature, and the remedy."""
    if concept.kind == "examples":
        return "the model's x_0hat equals the mean of the examples at every state; give other examples"
    if concept.kind == "classifier":
        return (
            f"the classifier's probability of {concept.shows!r} has no gradient at any state, because it is 0 or "
            "1; train a classifier that is less certain"
        )
    if concept.kind == "image":
        return "the gradient at its image is zero or not finite at every state; check the model's weights"
    text, without = concept.condition_pairs[phrasing]
    return (
        f"the model predicts the same for {text!r} and {without!r}, so there is no direction between them; change the "
        "prompts"
    )


def mean_latent(denoiser: Denoiser, pixels: Iterable[Float[Tensor, "n 3 height width"]]) -> Float[Tensor, " c *space"]:
    """The mean x_0 of images.

    The sum is in float64, so that the mean does not depend on the order and the batches.

    Args:
        pixels: batches of images in [-1, 1].
    """
    total, count = torch.zeros(denoiser.shape, dtype=torch.float64), 0
    for images in pixels:
        total += denoiser.to_latent(images.to(denoiser.device, denoiser.dtype)).detach().cpu().double().sum(0)
        count += len(images)
    return (total / count).to(denoiser.device, torch.promote_types(denoiser.dtype, torch.float32))


def require_untruncated(denoiser: Denoiser, concept: Concept) -> None:
    """Refuse a concept with a condition that the model would truncate.

    Raises:
        UserError: the message names the concept, the tokens and the limit.
    """
    for text in dict.fromkeys(text for pair in concept.condition_pairs for text in pair):
        try:
            denoiser.require_whole(text)
        except UserError as error:
            raise UserError(f"concept {concept.name!r}: {error}") from None


def require_query_direction(method: Method, concept: Concept) -> None:
    """Refuse a method whose query side cannot express the concept.

    Raises:
        UserError: the concept has no prompt, and the method needs one to generate its images.
    """
    if concept.kind in ("examples", "classifier") and method.query.direction not in CONCEPT_DIRECTIONS:
        raise UserError(
            f"concept {concept.name!r} is given by {concept.kind}, and a method with the query side "
            f"{method.query.trajectory} · {method.query.direction} needs the images of a prompt; choose a method "
            "with the query side sampling · concept_reward, such as concept_trak"
        )


def require_conditioning(denoiser: Denoiser, concept: Concept) -> None:
    """Refuse a concept whose kind of condition is not the one that the model takes.

    Raises:
        UserError: the message names the concept, the model's conditioning, and the keys to use.
    """
    has_image = bool(concept.conditioning_image or (denoiser.own_image and concept.image))
    if denoiser.takes_image != has_image:
        remedy = (
            "the model takes an image beside the text: set conditioning_image to a picture, such as edges or a pose "
            "for a ControlNet, or the reference for an IP-Adapter"
            if denoiser.takes_image
            else f"it has conditioning_image={concept.conditioning_image!r}, and the model takes no image; remove it"
        )
        raise UserError(f"concept {concept.name!r}: {remedy}")
    if concept.kind in ("examples", "classifier"):
        return
    field = "prompt" if concept.prompt else "labels" if concept.labels else "nothing"
    expected = {"text": "prompt", "class": "labels", "none": "nothing"}[denoiser.conditioning]
    if field == expected:
        return
    remedy = {
        "text": "the model's conditioning is text: give prompt and without_prompt",
        "class": "the model's conditioning is a class: give labels and without_labels, each a class's number or name",
        "none": "the model has no conditioning: give examples or a classifier, or ask about an image alone (scope: "
        "local, image: picture.png, neither prompt nor labels) with a whole-image row such as method=das",
    }[denoiser.conditioning]
    value = f"{field}={concept.text!r}" if concept.text else "neither prompt nor labels"
    raise UserError(f"concept {concept.name!r}: it has {value}, and {remedy}")


def require_conditions(denoiser: Denoiser, methods: Mapping[str, Method], concepts: Sequence[Concept] = ()) -> None:
    """Refuse methods with a direction between two conditions if the model is unconditional.

    A concept given by examples or a classifier is allowed, because another reward replaces `concept_reward` for it.

    Raises:
        UserError: the message names the method, its direction, and methods that can be used.
    """
    if denoiser.conditioning != "none":
        return
    rewarded = all(concept.kind in ("examples", "classifier") for concept in concepts) and bool(concepts)
    for name, method in methods.items():
        for side, probe in (("train", method.train), ("query", method.query)):
            if probe.direction in BETWEEN_CONDITIONS and not (rewarded and probe.direction == "concept_reward"):
                raise UserError(
                    f"method={name}: its {side} side, {probe.direction}, points from one condition to another, and the "
                    "model is unconditional and has none; choose a whole-image row: trak, d_trak or das. For concepts "
                    "given by examples or a classifier: concept_trak, or concept_a, concept_b or concept_c"
                )


def require_prompt_pairs(concepts: Sequence[Concept]) -> None:
    """Refuse concepts that are not a pair of conditions, because components compare two conditions.

    Raises:
        UserError: the message names the concept.
    """
    for concept in concepts:
        if concept.kind != "text" or concept.phrasings:
            raise UserError(
                f"concept {concept.name!r}: components compare two conditions; give one prompt and the same without "
                "the concept, and each phrasing as a concept of its own"
            )
