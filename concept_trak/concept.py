"""What is asked: a concept is a condition and the same condition without it.

`scope` chooses the states of the query: `global` asks over fresh samples of the condition, `local` about one image.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from concept_trak.denoiser import Condition, Denoiser
from concept_trak.method import Method
from concept_trak.noise import choice
from concept_trak.probe import Probe
from concept_trak.state import Batch
from concept_trak.trajectory import generate

# Query images are generated, and local images inverted, without guidance: the states the condition itself leads to.
UNGUIDED = Probe("sampling", "concept_reward")


@dataclass(frozen=True)
class Concept:
    """One question. `prompt` against `without_prompt` is the direction; `truth` only serves to grade the answer.

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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            self._refuse("name must be letters, digits, '.', '_' or '-', because it names files and columns")
        if bool(self.prompt) == bool(self.labels) and (self.prompt or not self.image):
            self._refuse("give either prompt or labels: the condition that has the concept")
        if self.without_labels if self.prompt else self.without_prompt:
            self._refuse("prompt goes with without_prompt, and labels with without_labels")
        if self.text and self.text == self.without:
            self._refuse(
                f"both conditions are {self.text!r}, so there is no direction between them; change without_prompt"
            )
        if self.scope not in ("global", "local"):
            self._refuse(f"scope={self.scope!r}; expected global or local")
        if (self.scope == "local") != bool(self.image):
            self._refuse("scope=local needs image=<path>, and only it does")
        if self.samples < 1:
            self._refuse(f"samples={self.samples}; expected at least 1")

    def _refuse(self, why: str) -> None:
        raise ValueError(f"concept {self.name!r}: {why}")

    @property
    def text(self) -> str:
        return self.prompt or self.labels

    @property
    def without(self) -> str:
        return self.without_prompt if self.prompt else self.without_labels


def negatives(denoiser: Denoiser, ids: Sequence[str], texts: Sequence[str], seed: int, turn: int = 0) -> Condition:
    """The model's own negative for each sample: the empty condition, or another combination keyed by (seed, id).

    `turn` counts on from there through the other combinations.
    """
    if denoiser.negative == "empty":
        return denoiser.encode([""] * len(ids))
    said = denoiser.spelled
    others = [[c for c in denoiser.combinations if said(c) != said(text)] for text in texts]
    if not all(others):
        raise ValueError("model.negative=other_label needs model.combinations with at least two entries to draw from")
    drawn = [
        o[(choice(len(o), seed, sample, "negative") + turn) % len(o)] for sample, o in zip(ids, others, strict=True)
    ]
    return denoiser.encode(drawn)


def negatives_of(denoiser: Denoiser, asked: int) -> int:
    """How many negatives a sample has where `asked` are: one if it is empty, else no more than there are others."""
    return 1 if denoiser.negative == "empty" else max(1, min(asked, len(denoiser.combinations) - 1))


def require_whole(denoiser: Denoiser, concept: Concept) -> None:
    """That the model reads both conditions to their ends.

    Raises:
        ValueError: it does not; the message names the concept, the tokens and the limit.
    """
    for text in (concept.text, concept.without):
        try:
            denoiser.require_whole(text)
        except ValueError as error:
            raise ValueError(f"concept {concept.name!r}: {error}") from None


def query_batch(denoiser: Denoiser, concept: Concept, pixels: Tensor | None = None) -> Batch:
    """The samples of a query; `pixels` [1, 3, h, w] is the image of a local one.

    A query's samples are named by their number, so that concepts with one seed share their noise.

    Raises:
        ValueError: the model does not read all of a condition; a concept cut short is another concept.
    """
    require_whole(denoiser, concept)
    count = 1 if concept.scope == "local" else concept.samples
    ids = tuple(f"query-{i}" for i in range(count))
    cond, without = denoiser.encode([concept.text] * count), denoiser.encode([concept.without] * count)
    negative = negatives(denoiser, ids, [concept.text] * count, concept.seed)
    x_0 = None if pixels is None else denoiser.to_latent(pixels.to(denoiser.device, denoiser.dtype))
    return Batch(ids, cond, negative, x_0, without)


def query_side(denoiser: Denoiser, method: Method, concept: Concept, batch: Batch) -> tuple[Method, Batch]:
    """The method and batch as the concept's scope needs them.

    Local: sampling becomes the inversion of the image, unguided and deterministic. Global with a whole-image row: the
    samples are the images generated for the condition, captioned so.
    """
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
