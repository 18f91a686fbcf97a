"""The work of one query: a concept's own samples, their mean feature, and pictures of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.features import query_features
from concept_trak.attribution.query import UNGUIDED, query_batch, resolve_query
from concept_trak.attribution.state import Batch
from concept_trak.attribution.trajectory import generate
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.worker import ModelWorker
from concept_trak.data.decode import decode_image
from concept_trak.data.image import center_crop, to_png, to_tensor
from concept_trak.models.classifier import open_classifier


@dataclass(frozen=True)
class QueryTask:
    """A concept for one method, and how many of its samples to show.

    With the bytes of its image if it is about one, of its examples (pictures of the model's size), of its classifier.
    """

    method: str
    concept: Concept
    image: bytes = b""
    shown: int = 8
    examples: tuple[bytes, ...] = ()
    classifier: bytes = b""

    @property
    def label(self) -> str:
        return f"{self.method}-{self.concept.name}"

    @property
    def samples(self) -> int:
        return 0


@dataclass(frozen=True)
class QueryResult:
    """phi_q, and pictures of the query's own samples (PNG) or some of its examples.

    `agreement`: of each phrasing, if there are several, the cosine of its feature with the mean of the others', in
    [-1, 1].
    """

    method: str
    concept: str
    phi: Float[np.ndarray, " k"]
    pictures: tuple[bytes, ...]
    agreement: tuple[float, ...] = ()


class QueryWorker(ModelWorker):
    """One concept: its samples, the mean feature of each phrasing, and the mean of these."""

    def __call__(self, question: QueryTask, attempt: Attempt) -> QueryResult:
        size = self.batch_size(attempt)
        batch = self.batch(question, size)
        phi = self.phi(question, batch, size)
        return QueryResult(
            method=question.method,
            concept=question.concept.name,
            phi=phi.mean(0).cpu().numpy(),
            pictures=self.pictures(question, batch),
            agreement=agreement(phi),
        )

    def batch(self, question: QueryTask, size: int) -> Batch:
        """The samples of a query, with its image, the mean of its examples, or its classifier."""
        concept, d = question.concept, self.denoiser
        pixels = pixels_of([question.image], d) if question.image else None
        target = mean_x_0(d, question.examples, size) if question.examples else None
        judge = None
        if question.classifier:
            judge = open_classifier(question.classifier, concept.classifier, concept.shows, d)
        return query_batch(d, concept, pixels, target, judge)

    def phi(self, question: QueryTask, batch: Batch, size: int) -> Float[Tensor, "ways k"]:
        """The mean feature of each phrasing, computed `size` samples at a time.

        Raises:
            ValueError: a phrasing has no direction at any state.
        """
        concept, row, features = question.concept, self.config.methods[question.method], []
        for i in range(0, len(batch.ids), size):
            method, part = resolve_query(self.denoiser, row, concept, batch.rows(slice(i, i + size)))
            features.append(query_features(self.denoiser, self.config.projector, method, part, concept.seed))
        ways = max(1, len(concept.askings))
        phi = by_turns(torch.cat([one.phi for one in features]), ways)
        states = torch.cat([one.states for one in features])
        for way in range(ways):
            if not torch.isfinite(phi[way]).all():
                raise UserError(f"concept {concept.name!r}: {not_finite(concept, self.denoiser.dtype)}")
            if not (states[way::ways] > 0).any():
                raise UserError(f"concept {concept.name!r}: {no_direction(concept, way)}")
        return phi

    def pictures(self, question: QueryTask, batch: Batch) -> tuple[bytes, ...]:
        """The image asked about, some of the examples, or what the model draws for the first samples."""
        if question.image:
            return (to_png(pixels_of([question.image], self.denoiser)[0]),)
        if question.examples:
            return question.examples[: question.shown]
        shown = batch.rows(slice(0, question.shown))
        images = self.denoiser.to_pixels(generate(self.denoiser, shown, UNGUIDED, question.concept.seed))
        return tuple(to_png(image) for image in images)


def by_turns(phi: Float[Tensor, "n k"], ways: int) -> Float[Tensor, "ways k"]:
    """The mean over every `ways`-th row, from each of the first rows on: the samples of one phrasing."""
    return torch.stack([phi[way::ways].mean(0) for way in range(ways)])


def agreement(phi: Float[Tensor, "ways k"]) -> tuple[float, ...]:
    """cos(phi_j, mean of the others) of each row; nothing of one row alone."""
    if len(phi) == 1:
        return ()
    return tuple(functional.cosine_similarity(phi, phi.sum(0) - phi, dim=1).tolist())


def pixels_of(images: Sequence[bytes], d: Denoiser) -> Float[Tensor, "n 3 h w"]:
    """Pictures as the model's own samples are: square, of its resolution, in [-1, 1]."""
    return torch.stack([to_tensor(center_crop(decode_image(image), d.resolution)) for image in images])


def mean_x_0(d: Denoiser, images: Sequence[bytes], size: int) -> Float[Tensor, "c h w"]:
    """The mean x_0 of some pictures, `size` at a time; summed in float64, so that no order or size shows."""
    total = torch.zeros(d.shape, dtype=torch.float64)
    for i in range(0, len(images), size):
        pixels = pixels_of(images[i : i + size], d).to(d.device, d.dtype)
        total += d.to_latent(pixels).detach().cpu().double().sum(0)
    return (total / len(images)).to(d.device, torch.promote_types(d.dtype, torch.float32))


def not_finite(concept: Concept, dtype: torch.dtype) -> str:
    """Why a query's feature has NaN or infinite numbers, and what to do."""
    if concept.kind == "classifier":
        return f"the gradient of log p({concept.shows!r}) is not finite; train a classifier that is less certain"
    wider = "; set model.precision=float32" if dtype in (torch.float16, torch.bfloat16) else ""
    return (
        f"its feature is not finite: the model's predictions overflow or are undefined in {dtype} at some "
        f"state{wider}; expected finite predictions along the whole path that the method takes"
    )


def no_direction(concept: Concept, way: int) -> str:
    """Why a query has no feature, and what to do."""
    if concept.kind == "examples":
        return "everywhere the model already sees the mean of the examples; give other examples"
    if concept.kind == "classifier":
        return (
            f"the classifier's probability of {concept.shows!r} has no slope where the model looks: it is 0 or 1 for "
            "sure, or not finite; train one that is less certain"
        )
    text, without = concept.askings[way]
    return (
        f"the model predicts the same for {text!r} and {without!r}, so there is no direction between them; change the "
        "prompts"
    )
