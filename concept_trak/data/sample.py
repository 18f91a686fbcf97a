"""From the rows of a shard to samples ready for the model, or rejects that name the reason."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.numerics import key
from concept_trak.config import DataConfig
from concept_trak.data.columns import caption_columns, caption_of
from concept_trak.data.decode import decode_image
from concept_trak.data.format import SourceRow, labels_of_row, named_columns, read_rows, sample_id
from concept_trak.data.image import nearest_bucket, resize_crop, to_tensor
from concept_trak.data.latents import Precomputed, is_finite
from concept_trak.data.shard import Shard
from concept_trak.store.part import Reject


@dataclass(frozen=True)
class Sample:
    """One training image with its caption; `row` is its row in the source, `origin` names source, version and row.

    `pixels` are in [-1, 1]; None of a sample that was encoded before, which has `precomputed` instead.
    """

    id: str
    caption: str
    pixels: Float[Tensor, "3 h w"] | None
    row: int
    labels: dict[str, str]
    origin: str = ""
    precomputed: Precomputed | None = None

    @property
    def shape(self) -> torch.Size:
        return self.content.shape

    @property
    def content(self) -> Tensor:
        """The image for the model: the pixels, or the latent."""
        content = self.precomputed.latent if self.precomputed else self.pixels
        assert content is not None, "a sample has pixels, or a latent"
        return content


class Unusable(ValueError):
    """A row without a sample, and the reason by which rejects are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def samples(
    shard: Shard, data: DataConfig, resolution: int, ids: Collection[str] | None = None
) -> Iterator[Sample | Reject]:
    """Every row of the shard, in order: a sample, or a reject.

    Reasons are no_caption, caption_type, text, decode, too_small, and those of the format.

    Args:
        shard: the rows.
        data: the settings that they are read with.
        resolution: side of the model's images, in pixels.
        ids: only these samples; no picture of another one is decoded.
    """
    for row in read_rows(shard, data, list(dict.fromkeys(column for _, column in named_columns(data)))):
        name = sample_id(row, data)
        if ids is not None and name not in ids:
            continue
        try:
            yield _sample(row, name, data, resolution, f"{shard.source}\n{shard.version}\n{row.number}")
        except Unusable as error:
            yield Reject(
                sample_id=name, source=shard.source, row=row.number, reason=error.reason, message=str(error)[:300]
            )


def batches(rows: Iterable[Sample | Reject], size: int) -> Iterator[list[Sample | Reject]]:
    """Everything that was read, in order, cut after every `size` samples; rejects do not count."""
    batch: list[Sample | Reject] = []
    for row in rows:
        batch.append(row)
        if sum(isinstance(r, Sample) for r in batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _sample(row: SourceRow, name: str, data: DataConfig, resolution: int, origin: str) -> Sample:
    if row.flaw:
        raise Unusable(*row.flaw)
    image, labels = row.values[data.image_column], labels_of_row(row, data)
    precomputed = image if isinstance(image, Precomputed) else None
    text = _caption(row, name, data, needed=precomputed is None)
    if precomputed is not None:
        if not is_finite(precomputed):
            raise Unusable("decode", "its latent or embedding has an infinite or undefined number; encode it again")
        return Sample(
            id=name, caption=text, pixels=None, row=row.number, labels=labels, origin=origin, precomputed=precomputed
        )
    assert image is None or isinstance(image, dict), "an image is bytes in a mapping, as datasets writes it"
    try:
        picture = decode_image((image or {}).get("bytes") or b"", data.transparency, data.most_pixels)
    except UserError as error:
        raise Unusable("decode", str(error)) from None
    return Sample(
        id=name,
        caption=text,
        pixels=to_tensor(_fitted(picture, name, data, resolution)),
        row=row.number,
        labels=labels,
        origin=origin,
    )


def _caption(row: SourceRow, name: str, data: DataConfig, needed: bool) -> str:
    try:
        text = caption_of(row.values, name, data)
    except UserError as error:
        raise Unusable("caption_type", str(error)) from None
    if needed and not text and caption_columns(data):
        raise Unusable("no_caption", f"{', '.join(caption_columns(data))} is empty; give the image a caption")
    return text


def _fitted(image: Image.Image, name: str, data: DataConfig, resolution: int) -> Image.Image:
    size = nearest_bucket(image, data.buckets) if data.buckets else (resolution, resolution)
    if not data.enlarge and (image.height < size[0] or image.width < size[1]):
        raise Unusable(
            "too_small",
            f"the image is {image.width} x {image.height}, smaller than the crop of {size[1]} x {size[0]}; leave it "
            "out, or set data.enlarge=true",
        )
    place = (0.5, 0.5) if data.crop == "center" else (_drawn(name, "down"), _drawn(name, "across"))
    return resize_crop(image, size, place)


def _drawn(name: str, way: str) -> float:
    """Uniform in [0, 1), the same in every run."""
    return key(name, "crop", way) / 2**63


def samples_by_id(shard: Shard, data: DataConfig, resolution: int, ids: Sequence[str]) -> list[Sample]:
    """The samples of a shard with these ids: those that the page shows."""
    return [s for s in samples(shard, data, resolution, frozenset(ids)) if isinstance(s, Sample)]


def originals(shard: Shard, data: DataConfig, ids: Collection[str]) -> dict[str, bytes]:
    """The original image files of these samples; none if the data are encoded already."""
    columns = [data.image_column, *([data.id_column] if data.id_column else [])]
    named = ((sample_id(row, data), row.values) for row in read_rows(shard, data, columns))
    images = ((name, values[data.image_column]) for name, values in named if name in ids)
    return {name: image["bytes"] for name, image in images if isinstance(image, dict)}
