"""The in-memory API: scores of images with captions for a concept and a model.

Features are computed by the same functions as in the workers of an audit, so the scores equal those of an audit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.damping import DEFAULT_DAMPING
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.features import Features, reject_reasons, train_features, training_batch
from concept_trak.attribution.fisher import NO_FEATURES, Gram, gram, solve_damped
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import METHODS, RECOMMENDED, Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import phrasing_features, require_conditioning, require_conditions
from concept_trak.attribution.query_paths import query_features
from concept_trak.attribution.ranking import scores
from concept_trak.attribution.repeated_texts import RepeatedTexts
from concept_trak.attribution.uncertainty import independent_features, score_intervals
from concept_trak.config import DAMPING, DataConfig, build
from concept_trak.data.in_memory import Images, memory_samples
from concept_trak.data.inventory import LeftOut
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import cut
from concept_trak.data.survey import survey
from concept_trak.models.encode import encode_samples, open_query, read_concept_files, reject, usable_batches
from concept_trak.store.part import Reject

Ranked = list[tuple[str, float]]


def dataset(uri: str, **settings: Any) -> DataConfig:
    """The settings of a data set, for `Attributor.fit`.

    Args:
        uri: a folder, a file or an address: `s3://bucket/train`.
        settings: any other setting of `DataConfig`, such as `caption_column="text"`.

    Raises:
        UserError: a setting has a value that it cannot have.

    Examples:
        >>> import concept_trak as ct
        >>> ct.dataset("s3://bucket/train", caption_column="text").caption_column
        'text'
    """
    return build(DataConfig, {"uri": uri, **settings})


@dataclass(frozen=True)
class Attribution:
    """The scores of all training samples for one concept, in the order of the samples.

    Attributes:
        ids: the samples' ids.
        scores: the damped scores [n], float32. Positive: training on the sample made the model better at the concept.
        plain: the plain inner products phi_q . phi_i [n], float32.
        rejects: the samples without a feature, each with its reason; they have no score.
        left_out: everything in a data set that no sample uses, counted by kind and reason.
        low, high: the ends of each damped score's 90 % interval [n], float32; NaN if a phrasing has a single sample.
    """

    ids: tuple[str, ...]
    scores: Float[np.ndarray, " n"]
    plain: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    rejects: tuple[Reject, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def top(self, n: int = 10) -> Ranked:
        """The n largest scores as (id, score), the largest first; ties in the order of ids."""
        return self._ranked(-self.scores, n)

    def bottom(self, n: int = 10) -> Ranked:
        """The n smallest scores as (id, score), the smallest first; ties in the order of ids."""
        return self._ranked(self.scores, n)

    def _ranked(self, keys: Float[np.ndarray, " n"], n: int) -> Ranked:
        order = sorted(range(len(self.ids)), key=lambda i: (keys[i], self.ids[i]))
        return [(self.ids[i], float(self.scores[i])) for i in order[:n]]

    def to_arrow(self) -> pa.Table:
        """A table with the columns sample_id, score and plain."""
        return pa.table({"sample_id": list(self.ids), "score": self.scores, "plain": self.plain})

    def to_pandas(self) -> Any:
        """The table of `to_arrow` as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            return self.to_arrow().to_pandas()
        except ImportError:
            raise UserError("pandas is not installed: pip install pandas, or use to_arrow()") from None


@dataclass(frozen=True)
class _Fitted:
    """The features of the usable training samples, and their Gram."""

    ids: tuple[str, ...]
    phi: Float[Tensor, "n k"]
    weight: Float[Tensor, " n"]
    gram: Gram
    rejects: tuple[Reject, ...]
    left_out: tuple[LeftOut, ...]


class Attributor:
    """Scores training samples against concepts, in memory.

    Args:
        model: a model from `load_model`.
        method: a row of `METHODS` by name, `recommended`, or a `Method` of your own.
        projector: maps gradients to k features.
        batch_size: samples that are computed together, at least 1; it does not change the scores.
        seed: seed of the noise of the training side.

    Raises:
        UserError: the method is unknown, or needs a conditioning that the model lacks.

    Examples:
        >>> import concept_trak as ct
        >>> from PIL import Image
        >>> model = ct.load_model("assets/demo", device="cpu")
        >>> colours = ("red", "green", "blue")
        >>> images = [Image.new("RGB", (32, 32), colour) for colour in colours]
        >>> attributor = ct.Attributor(model, method="caption_trak", projector=ct.Projector(dim=64))
        >>> attributor = attributor.fit(images, [f"a {colour} square" for colour in colours], ids=colours)
        >>> red = ct.Concept("red", prompt="a red square", without_prompt="a square", samples=1)
        >>> len(attributor.score(red).top(2))
        2
    """

    def __init__(
        self,
        model: Denoiser,
        *,
        method: str | Method = "recommended",
        projector: Projector = Projector(),
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}; expected at least 1")
        self.model, self.method = model, _method(method)
        self.projector, self.batch_size, self.seed = projector, batch_size, seed
        projector.width(sum(p.numel() for p in model.parameters.values()))
        self._workspace, self._negative_texts = Workspace(), RepeatedTexts(model)
        self._fitted: _Fitted | None = None

    def fit(
        self, images: Images | DataConfig, captions: Sequence[str] | None = None, ids: Sequence[str] | None = None
    ) -> "Attributor":
        """Compute the features of the training samples; they replace those of an earlier call.

        Args:
            images: PIL images of any size, a float tensor [n, 3, h, w] in [-1, 1] of the model's size, or a data set
                (`dataset`). PIL images are turned upright, put on white, resized and cropped to the model's square.
            captions: a caption for each image; None for a data set, which has its own captions.
            ids: an id for each image, all different; None means numbers: 000000, 000001, ...

        Returns:
            Itself.

        Raises:
            UserError: lengths differ, ids repeat, a caption is empty, a tensor is out of range, the data set cannot be
                read, or no sample has a feature.
        """
        rows, left_out = self._samples(images, captions, ids)
        rejects, sample_ids, phi, weight = list[Reject](), list[str](), list[Tensor](), list[Tensor]()
        for batch in usable_batches(self.model, rows, self.batch_size, rejects):
            features = self._features(batch)
            reasons = reject_reasons(features)
            rejects += [reject(sample, *reason) for sample, reason in zip(batch, reasons, strict=True) if reason]
            usable = [i for i, reason in enumerate(reasons) if reason is None]
            sample_ids += [batch[i].id for i in usable]
            phi.append(features.phi[usable].float())
            weight.append(features.weight[usable].float())
        if not sample_ids:
            raise UserError(f"no sample has a feature; the first is rejected for {_first(rejects)}")
        all_phi = torch.cat(phi)
        self._fitted = _Fitted(
            ids=tuple(sample_ids),
            phi=all_phi,
            weight=torch.cat(weight),
            gram=gram(all_phi),
            rejects=tuple(rejects),
            left_out=left_out,
        )
        return self

    def _samples(
        self, images: Images | DataConfig, captions: Sequence[str] | None, ids: Sequence[str] | None
    ) -> tuple[Iterable[Sample | Reject], tuple[LeftOut, ...]]:
        """The samples of `fit`, and everything in a data set that no sample uses."""
        side, conditioning = self.model.resolution, self.model.conditioning
        if not isinstance(images, DataConfig):
            return memory_samples(images, captions, ids, side, conditioning != "none"), ()
        data_survey = survey(images, conditioning)
        shards = (shard for source in data_survey.sources for shard in cut(source, images.shard_rows))
        return (row for shard in shards for row in samples(shard, images, side)), tuple(data_survey.left_out)

    def _features(self, chosen: Sequence[Sample]) -> Features:
        x_0, cond = encode_samples(self.model, chosen)
        ids, captions = [s.id for s in chosen], [s.caption for s in chosen]
        batch = training_batch(self.model, self.method, ids, captions, x_0, cond, self.seed, self._negative_texts)
        return train_features(self.model, self.projector, [self.method], batch, self.seed, self._workspace)[0]

    def score(self, concept: Concept, damping: float = DEFAULT_DAMPING) -> Attribution:
        """The score of every sample: w_i phi_q^T (K + lambda I)^-1 phi_i, lambda = damping tr(K) / k.

        Args:
            concept: the concept.
            damping: relative to the mean eigenvalue of K; positive.

        Returns:
            The scores of all samples, damped and plain.

        Raises:
            UserError: `fit` was not called, the concept does not fit or has no direction, or every feature is zero.
        """
        fitted = self._fitted
        if fitted is None:
            raise UserError("nothing to score: call fit(images, captions) first")
        if not DAMPING[0] <= damping <= DAMPING[1]:
            raise UserError(f"damping={damping}; expected a positive number, 1e-12 ... 1e12")
        require_conditions(self.model, {"method": self.method}, [concept])
        require_conditioning(self.model, concept)
        if fitted.gram.trace == 0:
            raise UserError(f"nothing in this data taught it, as far as the method can tell: {NO_FEATURES}")
        files, size = read_concept_files(self.model, concept), self.batch_size
        batch = open_query(self.model, concept, files, size)
        query = query_features(self.model, self.projector, [self.method], concept, batch, size, self._workspace)
        (features,) = query.features
        phi_q = phrasing_features(self.model, concept, features).mean(0, keepdim=True).cpu().double()
        queries = torch.cat([phi_q, independent_features(features.phi, len(files.examples)).cpu().double()])
        solution, _ = solve_damped(fitted.gram, damping, queries, lambda: fitted.phi)
        damped, plain = scores(fitted.phi, fitted.weight, torch.cat([solution.z[:1], phi_q]).float()).T.numpy()
        by_sample = scores(fitted.phi, fitted.weight, solution.z[1:].float())
        _, low, high = (end.numpy() for end in score_intervals(by_sample, max(1, len(concept.condition_pairs))))
        rejects, left_out = fitted.rejects, fitted.left_out
        return Attribution(
            ids=fitted.ids, scores=damped, plain=plain, low=low, high=high, rejects=rejects, left_out=left_out
        )


def _method(method: str | Method) -> Method:
    if isinstance(method, Method):
        return method
    name = RECOMMENDED if method == "recommended" else method
    if name not in METHODS:
        raise UserError(f"method={method!r} is not known; expected recommended or one of: {', '.join(METHODS)}")
    return METHODS[name]


def _first(rejects: Sequence[Reject]) -> str:
    return f"{rejects[0].reason}: {rejects[0].message}" if rejects else "no reason: there are none"
