"""The work of one question: a concept's own samples, their mean feature, and what they look like."""

from dataclasses import dataclass

import torch
from torch import Tensor

from concept_trak.concept import UNGUIDED, Concept, query_batch, query_side
from concept_trak.data.image import decode, fit, to_png, to_tensor
from concept_trak.features import query_features
from concept_trak.stages import Attempt, WithModel
from concept_trak.state import Batch
from concept_trak.trajectory import generate


@dataclass(frozen=True)
class Question:
    """A concept for one method, with the bytes of its image if it is about one, and how many of its samples to show."""

    method: str
    concept: Concept
    image: bytes = b""
    shown: int = 8


@dataclass(frozen=True)
class Answer:
    """phi_q, and pictures of the query's own samples (PNG)."""

    method: str
    concept: str
    phi: tuple[float, ...]
    pictures: tuple[bytes, ...]


class Query(WithModel):
    """One concept: its samples, their mean feature."""

    def __call__(self, question: Question, attempt: Attempt) -> Answer:
        concept, d = question.concept, self.denoiser
        pixels = None
        if question.image:
            pixels = to_tensor(fit(decode(question.image), d.resolution))[None]
        batch, size = query_batch(d, concept, pixels), self.batch_size(attempt)
        total, usable = None, 0
        for i in range(0, len(batch.ids), size):
            method, part = query_side(d, self.config.methods[question.method], concept, batch.rows(slice(i, i + size)))
            made = query_features(d, self.config.projector, method, part, concept.seed)
            total = made.phi.sum(0) if total is None else total + made.phi.sum(0)
            usable += int((made.states > 0).sum())
        assert total is not None, "a concept has at least one sample"
        if not usable or not torch.isfinite(total).all():
            raise ValueError(
                f"concept {concept.name!r}: the model predicts the same for {concept.text!r} and {concept.without!r}, "
                "so there is no direction between them; change the prompts"
            )
        return Answer(
            question.method,
            concept.name,
            tuple((total / len(batch.ids)).tolist()),
            self._pictures(question, batch, pixels),
        )

    def _pictures(self, question: Question, batch: Batch, pixels: Tensor | None) -> tuple[bytes, ...]:
        if pixels is not None:
            return (to_png(pixels[0]),)
        shown = batch.rows(slice(0, question.shown))
        images = self.denoiser.to_pixels(generate(self.denoiser, shown, UNGUIDED, question.concept.seed))
        return tuple(to_png(image) for image in images)
