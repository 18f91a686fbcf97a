"""What is asked: a condition and the same condition without the concept; or images, or a class, that no prompt names.

`scope` chooses the states of the query: `global` asks over fresh samples of the condition, `local` about one image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from concept_trak.contradiction import contradiction
from concept_trak.denoiser import Denoiser
from concept_trak.method import ASKED, Method
from concept_trak.negative import negatives, own_texts
from concept_trak.phrasing import Phrasing, without_phrase
from concept_trak.probe import Probe
from concept_trak.state import Batch
from concept_trak.trajectory import generate

# Query images are generated, and local images inverted, without guidance: the states the condition itself leads to.
UNGUIDED = Probe("sampling", "concept_reward")


REWARDS = {"text": "concept_reward", "examples": "example_reward", "classifier": "classifier_reward"}
"""The direction of a query by what its concept is given by."""


@dataclass(frozen=True)
class Concept:
    """One question, given by a `prompt` (or `labels`), by `examples` or by a `classifier`: one of them.

    Raises:
        ValueError: something is missing or contradicts itself; the message names the concept.
    """

    name: str
    """Letters, digits, `.`, `_`, `-`: it names files and columns."""
    prompt: str = ""
    """The condition with the concept: "a red triangle". A model without conditions is asked about an image alone."""
    without_prompt: str = ""
    """The same without it ("red" asks for the triangle); empty is the model's empty condition."""
    labels: str = ""
    """For label-conditioned models, instead of `prompt`."""
    without_labels: str = ""
    """For label-conditioned models, instead of `without_prompt`."""
    scope: str = "global"
    """`global`: over `samples` fresh samples of the prompt; `local`: about `image`."""
    samples: int = 16
    """global: how many trajectories are averaged."""
    seed: int = 0
    """global: names the trajectories."""
    image: str = ""
    """local: the image asked about."""
    truth: dict[str, str] = field(default_factory=dict)
    """Label columns and the values that show the concept, for precision and AP; never used in a score."""
    minus: str = ""
    """Instead of `without_prompt`: a phrase of the prompt, which is then written out without it, and shown."""
    phrasings: tuple[Phrasing, ...] = ()
    """The concept in other words: the samples take turns through the prompt and these, and count alike."""
    examples: tuple[str, ...] = ()
    """Pictures that show the concept, or folders of them (at most 256): what pulls x_0hat to their mean."""
    classifier: str = ""
    """A .safetensors file of one of the architectures in `judge.py`: what pulls x_0hat to its class `shows`."""
    shows: str = ""
    """classifier: the class that is the concept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrasings", tuple(self.phrasings))
        object.__setattr__(self, "examples", tuple(self.examples))
        if why := contradiction(self):
            raise ValueError(f"concept {self.name!r}: {why}")
        for text, without in self.askings:
            if text == without:
                raise ValueError(
                    f"concept {self.name!r}: both conditions are {text!r}, so there is no direction between them; "
                    "change without_prompt"
                )

    @property
    def kind(self) -> str:
        """text, examples or classifier, or image: what an image itself says, to a model without conditions."""
        kinds = {"examples": self.examples, "classifier": self.classifier, "text": self.text}
        return next((kind for kind, given in kinds.items() if given), "image")

    @property
    def text(self) -> str:
        return self.prompt or self.labels

    @property
    def without(self) -> str:
        return self._without(self.text, self.without_prompt if self.prompt else self.without_labels)

    @property
    def askings(self) -> tuple[tuple[str, str], ...]:
        """Every (condition, the same without the concept): the prompt's, then its phrasings'; none without texts."""
        if self.kind != "text":
            return ()
        others = ((p.prompt, self._without(p.prompt, p.without_prompt or self.without_prompt)) for p in self.phrasings)
        return ((self.text, self.without), *others)

    @property
    def _written(self) -> str:
        """That the tool wrote the second conditions, where it did."""
        return f" (minus {self.minus!r}, written out)" if self.minus else ""

    def _without(self, text: str, written: str) -> str:
        try:
            return without_phrase(text, self.minus) if self.minus and not written else written
        except ValueError as error:
            raise ValueError(f"concept {self.name!r}: minus: {error}") from None

    @property
    def count(self) -> int:
        """How many samples are asked: one an asking about an image, else `samples`."""
        return max(1, len(self.askings)) if self.scope == "local" else self.samples

    @property
    def question(self) -> str:
        """What is asked, in one line."""
        if self.kind == "examples":
            return f"what the pictures in {', '.join(self.examples)} share"
        if self.kind == "classifier":
            return f"what {self.classifier} takes for {self.shows!r}"
        if self.kind == "image":
            return f"what {self.image} is"
        return "; ".join(f"{text!r} without it: {without!r}" for text, without in self.askings) + self._written


def require_whole(denoiser: Denoiser, concept: Concept) -> None:
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
    require_whole(denoiser, concept)
    ways = concept.askings
    count = concept.count
    ids = tuple(f"query-{i}" for i in range(count))
    asked = [ways[i % len(ways)] for i in range(count)] if ways else []
    texts = [text for text, _ in asked] or own_texts(denoiser, ids, concept.seed)
    without = denoiser.encode([other for _, other in asked]) if ways else None
    negative = negatives(denoiser, ids, texts, concept.seed)
    x_0 = None if pixels is None else denoiser.to_latent(pixels.to(denoiser.device, denoiser.dtype))
    x_0 = None if x_0 is None else x_0.expand(count, *x_0.shape[1:])
    return Batch(ids, denoiser.encode(texts), negative, x_0, without, target=target, judge=judge)


def query_side(denoiser: Denoiser, method: Method, concept: Concept, batch: Batch) -> tuple[Method, Batch]:
    """The method and batch as the concept needs them.

    Without texts the concept reward becomes that of `REWARDS`. Local: sampling becomes the inversion of the image,
    unguided and deterministic. Global with a whole-image row: the samples are the images generated for the condition,
    captioned so.
    """
    require_answer(method, concept)
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


def require_answer(method: Method, concept: Concept) -> None:
    """That a row can be asked for a concept.

    Raises:
        ValueError: a row without a concept's reward would answer about pictures of the model's own choice.
    """
    if concept.kind in ("examples", "classifier") and method.query.direction not in ASKED:
        raise ValueError(
            f"concept {concept.name!r} is given by {concept.kind}, and a row whose query side is "
            f"{method.query.trajectory} · {method.query.direction} asks about the pictures of a prompt; choose a row "
            "with the query side sampling · concept_reward, such as concept_trak"
        )
