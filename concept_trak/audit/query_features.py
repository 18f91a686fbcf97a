"""The queries of an audit, and the work of one query: the concept's own samples, their mean feature, and pictures."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
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
from concept_trak.attribution.method import Method
from concept_trak.attribution.query import (
    phrasing_features,
    require_conditioning,
    require_conditions,
    require_untruncated,
)
from concept_trak.attribution.query_paths import QueryFeatures, query_features, query_images
from concept_trak.attribution.state import Batch, by_path
from concept_trak.attribution.uncertainty import example_groups, query_groups
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.recent import Recent
from concept_trak.audit.worker import ModelWorker, Work
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.data.image import to_png
from concept_trak.models.encode import ConceptFiles, decode_pixels, open_query, read_concept_files

Pictures = tuple[tuple[bytes, ...], ConceptFit | None]
KEPT_PICTURES = 64
"""Of how many concepts a worker keeps the pictures for other methods."""


@dataclass(frozen=True)
class QueryTask(Task):
    """A concept for methods whose query sides share their states, the number of pictures to make, and its files.

    The files are its image, its examples (pictures of the model's size) or its classifier, and its conditioning image.
    """

    methods: tuple[str, ...]
    concept: Concept
    image: bytes = b""
    picture_count: int = 8
    examples: tuple[bytes, ...] = ()
    classifier: bytes = b""
    conditioning: bytes = b""

    @property
    def label(self) -> str:
        return f"{'-'.join(self.methods)}-{self.concept.name}"

    @property
    def samples(self) -> int:
        return self.concept.count

    @property
    def content(self) -> tuple["QueryTask", list[str]]:
        """All that the features depend on except the methods, with a hash in place of each file."""
        files = [sha256(data).hexdigest() for data in (self.image, self.classifier, self.conditioning, *self.examples)]
        concept = replace(self.concept, name="any", truth={})
        task = replace(self, methods=(), concept=concept, image=b"", classifier=b"", conditioning=b"", examples=())
        return task, files


@dataclass(frozen=True)
class MethodQuery:
    """phi_q of a concept for one method, and pictures (PNG) of the query's own samples or of some of its examples.

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


@dataclass(frozen=True)
class QueryResult:
    """The query of each method, in the order of the task's methods."""

    queries: tuple[MethodQuery, ...]


class QueryWorker(ModelWorker):
    """Computes the queries of one concept: its samples, the mean feature of each phrasing, and the mean of these."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._workspace = Workspace()
        self._pictures = Recent[Pictures](KEPT_PICTURES)

    def __call__(self, question: QueryTask, attempt: Attempt) -> QueryResult:
        size = self.batch_size(attempt)
        batch = self.batch(question, size)
        query = self.features(question, batch, size, attempt.report)
        by_method = zip(question.methods, query.features, strict=True)
        queries = [self._query(question, method, features) for method, features in by_method]
        key = repr(question.content)
        shown = self._pictures.get(key) or self._pictures.keep(key, self.pictures_and_fit(question, batch, query))
        return QueryResult(tuple(replace(own, pictures=shown[0], fit=shown[1]) for own in queries))

    def _query(self, question: QueryTask, method: str, features: Features) -> MethodQuery:
        """The query of one method, without pictures."""
        phi = phrasing_features(self.denoiser, question.concept, features)
        phrasings = max(1, len(question.concept.condition_pairs))
        examples = len(question.examples)
        groups = query_groups(features.phi, phrasings, example_groups(examples, len(features.phi)))
        halves = query_halves(features.phi, phrasings) if examples < 2 or groups is None else query_halves(groups)
        return MethodQuery(
            method=method,
            concept=question.concept.name,
            phi=phi.mean(0).cpu().numpy(),
            pictures=(),
            agreement=agreement(phi),
            halves=None if halves is None else halves.cpu().numpy(),
            groups=None if groups is None else groups.cpu().numpy(),
            examples=examples,
        )

    def batch(self, question: QueryTask, size: int) -> Batch:
        """The samples of a question; its examples are encoded `size` at a time."""
        files = ConceptFiles(question.image, question.examples, question.classifier, question.conditioning)
        return open_query(self.denoiser, question.concept, files, size)

    def features(
        self, question: QueryTask, batch: Batch, size: int, report: Callable[[float], None] = discard_report
    ) -> QueryFeatures:
        """The features of each sample, computed `size` samples at a time."""
        methods, projector = [self.config.methods[method] for method in question.methods], self.config.projector
        return query_features(self.denoiser, projector, methods, question.concept, batch, size, self._workspace, report)

    def pictures_and_fit(self, question: QueryTask, batch: Batch, query: QueryFeatures) -> Pictures:
        """The concept's image, some of its examples, or what the model draws for the first samples, and how well the
        model tells the concept in them; nothing if none is shown."""
        if not question.picture_count:
            return (), None
        if question.image:
            image = to_png(decode_pixels([question.image], self.denoiser.resolution)[0])
            return (image,), self._fit(question, batch.rows(slice(0, 1)), batch.x_0)
        if question.examples:
            return question.examples[: question.picture_count], None
        images = query_images(self.denoiser, question.concept, query, question.picture_count)
        pictures = tuple(to_png(image) for image in self.denoiser.to_pixels(images))
        return pictures, self._fit(question, batch.rows(slice(0, len(images))), images)

    def _fit(self, question: QueryTask, batch: Batch, x_0: Tensor | None) -> ConceptFit | None:
        if x_0 is None or batch.without is None:
            return None
        return concept_fit(self.denoiser, batch, x_0[: len(batch.ids)], question.concept.seed)


def agreement(phi: Float[Tensor, "phrasings k"]) -> tuple[float, ...]:
    """cos(phi_j, mean of the others) of each row; empty for a single row."""
    if len(phi) == 1:
        return ()
    return tuple(functional.cosine_similarity(phi, phi.sum(0) - phi, dim=1).tolist())


def grouped(queries: Iterable[QueryTask], methods: Mapping[str, Method]) -> tuple[QueryTask, ...]:
    """Each query for each group of methods whose query sides share their states."""
    groups = by_path({name: method.query for name, method in methods.items()})
    return tuple(replace(query, methods=group) for group, query in product(groups, queries))


def open_questions(denoiser: Denoiser, config: AuditConfig) -> list[QueryTask]:
    """The queries of a configuration, with the contents of their files and without methods.

    Raises:
        UserError: a file cannot be read, or the model cannot answer; the message names the concept or the method.
    """
    require_conditions(denoiser, config.methods, config.concepts)
    return [_query(denoiser, concept, config.data) for concept in config.concepts]


def _query(denoiser: Denoiser, concept: Concept, data: DataConfig) -> QueryTask:
    """The concept with the contents of its files, without methods."""
    require_conditioning(denoiser, concept)
    require_untruncated(denoiser, concept)
    for text, without in concept.condition_pairs:
        _require_direction(denoiser, concept, text, without)
    files = read_concept_files(denoiser, concept, data)
    return QueryTask(
        methods=(),
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
