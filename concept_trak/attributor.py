"""The in-memory API: a model, some images with captions, a concept; scores come out.

The same functions as the workers of an audit compute the features, so that the scores are those of an audit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.features import reject_reasons, train_features, training_batch
from concept_trak.attribution.fisher import gram, solve_damped
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import METHODS, RECOMMENDED, Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import phrasing_features, query_features, require_conditioning, require_conditions
from concept_trak.attribution.ranking import scores
from concept_trak.config import DataConfig, build
from concept_trak.data.columns import survey
from concept_trak.data.decode import rgb_image
from concept_trak.data.image import center_crop, to_tensor
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import cut
from concept_trak.models.encode import (
    batches_of_one_shape,
    encode_samples,
    open_query,
    read_concept_files,
    reject_unknown_class,
)
from concept_trak.store.part import Reject

Images = Sequence[Any] | Tensor  # what they hold is checked with a message of its own
Ranked = list[tuple[str, float]]


def dataset(uri: str, **settings: Any) -> DataConfig:
    """A data set for `Attributor.fit`.

    Args:
        uri: a folder, a file or an address: `s3://bucket/train`.
        settings: any other setting of `DataConfig`, such as `caption_column="text"`.

    Raises:
        UserError: a setting has a value that it cannot have.

    Example:
        >>> import concept_trak as ct
        >>> ct.dataset("s3://bucket/train", caption_column="text").caption_column
        'text'
    """
    return build(DataConfig, {"uri": uri, **settings})


@dataclass(frozen=True)
class Attribution:
    """What each training sample contributed to a concept, in the order of the samples.

    Attributes:
        ids: the samples' ids.
        scores: the damped scores [n], float32. Positive: training on the sample made the model better at the concept.
        plain: the plain inner products [n], float32, beside the damped ones.
        rejects: the samples without a feature, each with its reason; they have no score.
    """

    ids: tuple[str, ...]
    scores: Float[np.ndarray, " n"]
    plain: Float[np.ndarray, " n"]
    rejects: tuple[Reject, ...] = ()

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
        """The same as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            return self.to_arrow().to_pandas()
        except ImportError:
            raise UserError("pandas is not installed: pip install pandas, or use to_arrow()") from None


class Attributor:
    """Scores training samples against concepts, in memory.

    Args:
        model: a model, as `load_model` returns it.
        method: a row of `METHODS` by name, `recommended`, or a `Method` of your own.
        projector: from gradients to k features.
        batch_size: samples computed at a time; it does not change the scores.
        seed: names the noise of the training side.

    Raises:
        UserError: the method is not known, or needs a conditioning that the model lacks.

    Example:
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
        self._workspace = Workspace()
        self._ids: tuple[str, ...] = ()
        self._rejects: tuple[Reject, ...] = ()
        self._phi, self._weight = torch.zeros(0, 0), torch.zeros(0)

    def fit(
        self, images: Images | DataConfig, captions: Sequence[str] | None = None, ids: Sequence[str] | None = None
    ) -> "Attributor":
        """Compute the features of the training samples; a second call starts anew.

        Args:
            images: PIL images of any size (turned upright, on white, resized and cropped to the model's square), a
                float tensor [n, 3, h, w] in [-1, 1] of the model's size, or a data set (`dataset`).
            captions: one for each image; None for a data set, which has its own.
            ids: one for each image, all different; None numbers them: 000000, 000001, ...

        Returns:
            Itself.

        Raises:
            UserError: lengths differ, ids repeat, a caption is empty, a tensor is out of range, the data set cannot be
                read, or no sample has a feature.
        """
        rows = self._dataset(images) if isinstance(images, DataConfig) else self._images(images, captions, ids)
        kept, rejects, phi, weight = list[str](), list[Reject](), list[Tensor](), list[Tensor]()
        for batch in self._batches(rows, rejects):
            x_0, cond = encode_samples(self.model, batch)
            names, texts = [s.id for s in batch], [s.caption for s in batch]
            training = training_batch(self.model, self.method, names, texts, x_0, cond, self.seed)
            (features,) = train_features(
                self.model, self.projector, [self.method], training, self.seed, self._workspace
            )
            reasons = reject_reasons(features)
            rejects += [Reject(s.id, "", s.row, *r) for s, r in zip(batch, reasons, strict=True) if r is not None]
            usable = [i for i, reason in enumerate(reasons) if reason is None]
            kept += [names[i] for i in usable]
            phi.append(features.phi[usable].float())
            weight.append(features.weight[usable].float())
        if not kept:
            raise UserError(f"no sample has a feature; the first is rejected for {_first(rejects)}")
        self._ids, self._rejects, self._phi, self._weight = (
            tuple(kept),
            tuple(rejects),
            torch.cat(phi),
            torch.cat(weight),
        )
        return self

    def score(self, concept: Concept, damping: float = 100.0) -> Attribution:
        """The score of every sample: w_i phi_q^T (K + lambda I)^-1 phi_i, lambda = damping tr(K) / k.

        Args:
            concept: what is asked about.
            damping: relative to the mean eigenvalue of K; positive.

        Raises:
            UserError: `fit` was not called, the model cannot answer, or the concept has no direction.
        """
        if not self._ids:
            raise UserError("nothing to score: call fit(images, captions) first")
        if damping <= 0:
            raise UserError(f"damping={damping}; expected a positive number")
        require_conditions(self.model, {"method": self.method}, [concept])
        require_conditioning(self.model, concept)
        batch = open_query(self.model, concept, read_concept_files(self.model, concept), self.batch_size)
        features = query_features(
            self.model, self.projector, self.method, concept, batch, self.batch_size, self._workspace
        )
        phi_q = phrasing_features(self.model, concept, features).mean(0, keepdim=True).cpu().double()
        k = gram(self._phi)
        if k.trace == 0:
            raise UserError("all features are zero: the prediction depends on no caption (is the model trained?)")
        solution, _ = solve_damped(k, damping, phi_q, lambda: self._phi)
        damped, plain = scores(self._phi, self._weight, torch.cat([solution.z, phi_q]).float()).T.numpy()
        return Attribution(self._ids, damped, plain, self._rejects)

    def _images(
        self, images: Images, captions: Sequence[str] | None, ids: Sequence[str] | None
    ) -> Iterator[Sample | Reject]:
        names = [f"{i:06d}" for i in range(len(images))] if ids is None else [str(i) for i in ids]
        texts = [""] * len(images) if captions is None else list(captions)
        _require_alike(len(images), texts, names, needed=self.model.conditioning != "none")
        pixels = _checked_pixels(images, self.model.resolution) if isinstance(images, Tensor) else None
        for i, (name, text) in enumerate(zip(names, texts, strict=True)):
            own = _pixels(images[i], self.model.resolution) if pixels is None else pixels[i]
            yield Sample(name, text, own, i, {})

    def _dataset(self, data: DataConfig) -> Iterator[Sample | Reject]:
        for source in survey(data, self.model.conditioning).sources:
            for shard in cut(source, data.shard_rows):
                yield from samples(shard, data, self.model.resolution)

    def _batches(self, rows: Iterable[Sample | Reject], rejects: list[Reject]) -> Iterator[list[Sample]]:
        """Usable samples in batches of one shape; the others go to `rejects`."""
        waiting = list[Sample]()
        for row in rows:
            sample = reject_unknown_class(self.model, row, "")
            if isinstance(sample, Reject):
                rejects.append(sample)
                continue
            waiting.append(sample)
            if len(waiting) == self.batch_size:
                yield from batches_of_one_shape(waiting)
                waiting = []
        yield from batches_of_one_shape(waiting)


def _method(method: str | Method) -> Method:
    if isinstance(method, Method):
        return method
    name = RECOMMENDED if method == "recommended" else method
    if name not in METHODS:
        raise UserError(f"method={method!r} is not known; expected recommended or one of: {', '.join(METHODS)}")
    return METHODS[name]


def _require_alike(count: int, captions: Sequence[str], ids: Sequence[str], needed: bool) -> None:
    if not count:
        raise UserError("images is empty; expected at least one image")
    if not count == len(captions) == len(ids):
        raise UserError(f"{count} images, {len(captions)} captions and {len(ids)} ids; expected one of each an image")
    if len(set(ids)) < count:
        raise UserError(f"ids: {next(i for i in ids if list(ids).count(i) > 1)!r} occurs twice; give each its own")
    if needed and (empty := [i for i, text in zip(ids, captions, strict=True) if not text]):
        raise UserError(f"the caption of {empty[0]!r} is empty; the model is conditioned on one: leave the image out")


def _checked_pixels(pixels: Tensor, resolution: int) -> Tensor:
    if pixels.dim() != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise UserError(f"images have shape {list(pixels.shape)} and {pixels.dtype}; expected floats [n, 3, h, w]")
    if pixels.shape[2:] != (resolution, resolution):
        raise UserError(
            f"images are {pixels.shape[2]} x {pixels.shape[3]} and the model's are {resolution} x {resolution}; resize "
            "them, or give PIL images, which are resized and cropped"
        )
    if not -1.001 <= float(pixels.min()) <= float(pixels.max()) <= 1.001:
        raise UserError(
            f"images range over {float(pixels.min()):.3g} ... {float(pixels.max()):.3g}; expected x / 127.5 - 1"
        )
    return pixels.cpu().float()


def _pixels(image: Any, resolution: int) -> Tensor:
    if not isinstance(image, Image.Image):
        raise UserError(f"an image is {type(image).__name__}; expected PIL images or one float tensor [n, 3, h, w]")
    return to_tensor(center_crop(rgb_image(image), resolution))


def _first(rejects: Sequence[Reject]) -> str:
    return f"{rejects[0].reason}: {rejects[0].message}" if rejects else "no reason: there are none"
