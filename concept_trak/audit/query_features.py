"""The queries of an audit, and the work of one query: the concept's own samples, their mean feature, and pictures."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.concept_fit import ConceptFit, concept_fit
from concept_trak.attribution.damping import query_halves
from concept_trak.attribution.denoiser import Denoiser, equal_conditions
from concept_trak.attribution.features import Features, discard_report
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.query import (
    UNGUIDED,
    phrasing_features,
    query_features,
    require_conditioning,
    require_conditions,
    require_untruncated,
)
from concept_trak.attribution.state import Batch
from concept_trak.attribution.trajectory import generate
from concept_trak.attribution.uncertainty import example_groups, query_groups
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import ModelWorker, Work
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.data.image import to_png
from concept_trak.models.encode import ConceptFiles, decode_pixels, open_query, read_concept_files

Pictures = tuple[tuple[bytes, ...], ConceptFit | None]
KEPT_PICTURES = 64
"""Of how many concepts a worker keeps the pictures for the next method."""


@dataclass(frozen=True)
class QueryTask(Task):
    """A concept for one method, the number of pictures to make of it, and the bytes of its files.

    The files are its image, its examples (pictures of the model's size) or its classifier, and its conditioning image.
    """

    method: str
    concept: Concept
    image: bytes = b""
    picture_count: int = 8
    examples: tuple[bytes, ...] = ()
    classifier: bytes = b""
    conditioning: bytes = b""

    @property
    def label(self) -> str:
        return f"{self.method}-{self.concept.name}"

    @property
    def samples(self) -> int:
        return self.concept.count

    @property
    def content(self) -> tuple["QueryTask", list[str]]:
        """All that the feature depends on except the method, with a hash in place of each file."""
        files = [sha256(data).hexdigest() for data in (self.image, self.classifier, self.conditioning, *self.examples)]
        concept = replace(self.concept, name="any", truth={})
        task = replace(self, method="", concept=concept, image=b"", classifier=b"", conditioning=b"", examples=())
        return task, files


@dataclass(frozen=True)
class QueryResult:
    """phi_q, and pictures (PNG) of the query's own samples or of some of its examples.

    `agreement`: if there are several phrasings, the cosine of each one's feature with the mean of the others, in
    [-1, 1]. `halves`: the features of the two halves of its samples; None where a phrasing has one sample.
    `groups`: the same of more groups, for the intervals of scores; they share none of the `examples`, the number of
    example pictures, if there are several. `fit`: whether the model tells the concept in these pictures; None without
    pictures of two conditions.
    """

    method: str
    concept: str
    phi: Float[np.ndarray, " k"]
    pictures: tuple[bytes, ...]
    agreement: tuple[float, ...] = ()
    halves: Float[np.ndarray, "2 k"] | None = None
    groups: Float[np.ndarray, "g k"] | None = None
    fit: ConceptFit | None = None
    examples: int = 0


class QueryWorker(ModelWorker):
    """Computes one concept's query: its samples, the mean feature of each phrasing, and the mean of these."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._workspace = Workspace()
        self._pictures = OrderedDict[str, Pictures]()

    def __call__(self, question: QueryTask, attempt: Attempt) -> QueryResult:
        size = self.batch_size(attempt)
        batch = self.batch(question, size)
        features = self.features(question, batch, size, attempt.report)
        phi = phrasing_features(self.denoiser, question.concept, features)
        phrasings = max(1, len(question.concept.condition_pairs))
        examples = len(question.examples)
        groups = query_groups(features.phi, phrasings, example_groups(examples, len(batch.ids)))
        halves = query_halves(features.phi, phrasings) if examples < 2 or groups is None else query_halves(groups)
        pictures, fit = self._shared_pictures(question, batch)
        return QueryResult(
            method=question.method,
            concept=question.concept.name,
            phi=phi.mean(0).cpu().numpy(),
            pictures=pictures,
            agreement=agreement(phi),
            halves=None if halves is None else halves.cpu().numpy(),
            groups=None if groups is None else groups.cpu().numpy(),
            fit=fit,
            examples=examples,
        )

    def batch(self, question: QueryTask, size: int) -> Batch:
        """The samples of a question; its examples are encoded `size` at a time."""
        files = ConceptFiles(question.image, question.examples, question.classifier, question.conditioning)
        return open_query(self.denoiser, question.concept, files, size)

    def features(
        self, question: QueryTask, batch: Batch, size: int, report: Callable[[float], None] = discard_report
    ) -> Features:
        """The feature of each sample, computed `size` samples at a time."""
        method, projector = self.config.methods[question.method], self.config.projector
        return query_features(self.denoiser, projector, method, question.concept, batch, size, self._workspace, report)

    def _shared_pictures(self, question: QueryTask, batch: Batch) -> Pictures:
        """`pictures_and_fit`, computed once for all methods: drawing takes as long as the states of a query."""
        key = repr(question.content)
        pictures = self._pictures.pop(key, None) or self.pictures_and_fit(question, batch)
        self._pictures[key] = pictures
        if len(self._pictures) > KEPT_PICTURES:
            self._pictures.popitem(last=False)
        return pictures

    def pictures_and_fit(self, question: QueryTask, batch: Batch) -> Pictures:
        """The concept's image, some of its examples, or what the model draws for the first samples, and how well the
        model tells the concept in them; nothing if none is shown."""
        if not question.picture_count:
            return (), None
        if question.image:
            image = to_png(decode_pixels([question.image], self.denoiser.resolution)[0])
            return (image,), self._fit(question, batch.rows(slice(0, 1)), batch.x_0)
        if question.examples:
            return question.examples[: question.picture_count], None
        samples = batch.rows(slice(0, question.picture_count))
        images = generate(self.denoiser, samples, UNGUIDED, question.concept.seed)
        pictures = tuple(to_png(image) for image in self.denoiser.to_pixels(images))
        return pictures, self._fit(question, samples, images)

    def _fit(self, question: QueryTask, batch: Batch, x_0: Tensor | None) -> ConceptFit | None:
        if x_0 is None or batch.without is None:
            return None
        return concept_fit(self.denoiser, batch, x_0[: len(batch.ids)], question.concept.seed)


def agreement(phi: Float[Tensor, "phrasings k"]) -> tuple[float, ...]:
    """cos(phi_j, mean of the others) of each row; empty for a single row."""
    if len(phi) == 1:
        return ()
    return tuple(functional.cosine_similarity(phi, phi.sum(0) - phi, dim=1).tolist())


def open_questions(denoiser: Denoiser, config: AuditConfig) -> list[QueryTask]:
    """The queries of a configuration, with the contents of their files and without a method.

    Raises:
        UserError: a file cannot be read, or the model cannot answer; the message names the concept or the method.
    """
    require_conditions(denoiser, config.methods, config.concepts)
    return [_query(denoiser, concept, config.data) for concept in config.concepts]


def _query(denoiser: Denoiser, concept: Concept, data: DataConfig) -> QueryTask:
    """The concept with the contents of its files, without a method."""
    require_conditioning(denoiser, concept)
    require_untruncated(denoiser, concept)
    for text, without in concept.condition_pairs:
        _require_direction(denoiser, concept, text, without)
    files = read_concept_files(denoiser, concept, data)
    return QueryTask(
        method="",
        concept=concept,
        image=files.image,
        examples=files.examples,
        classifier=files.classifier,
        conditioning=files.conditioning,
    )


def _require_direction(denoiser: Denoiser, concept: Concept, text: str, without: str) -> None:
    """Check that the model encodes the two conditions differently; a tokenizer may map two spellings to one."""
    if equal_conditions(denoiser.encode([text]), denoiser.encode([without])).all():
        raise UserError(
            f"concept {concept.name!r}: the model encodes {text!r} and {without!r} alike, so there is no direction "
            "between them; change the prompts"
        )


def file_digests(queries: Iterable[QueryTask]) -> dict[str, Any]:
    """A digest of the examples, the classifier and the conditioning image of every concept with such files, because
    files may change.
    """
    files = {q.concept.name: (*q.examples, q.classifier, q.conditioning) for q in queries}
    files = {name: contents for name, contents in files.items() if any(contents)}
    digests = {name: sha256(b"".join(contents)).hexdigest() for name, contents in files.items()}
    return {"evidence": digests} if digests else {}
