"""From the rows of a shard to samples ready for the model, or rejects that name the reason."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.numerics import key
from concept_trak.config import DataConfig
from concept_trak.data.captions import caption_columns
from concept_trak.data.clip import TooFewFrames, decode_clip
from concept_trak.data.decode import decode_image
from concept_trak.data.format import Precomputed, RowImage, format_of
from concept_trak.data.image import nearest_bucket, resize_crop, to_tensor
from concept_trak.data.index import IndexedRow, indexed_rows
from concept_trak.data.latents import is_finite
from concept_trak.data.shard import Shard
from concept_trak.store.part import Reject


@dataclass(frozen=True)
class Sample:
    """One training image or clip with its caption; `row` is its row in the source, `origin` names source, version and
    row.

    `pixels` are in [-1, 1], of a clip [3, frames, h, w]; None of a sample that was encoded before, which has
    `precomputed` instead. `conditioning` are those of its conditioning image, of the same size, if the settings name a
    column of them.
    """

    id: str
    caption: str
    pixels: Float[Tensor, "3 *frames h w"] | None
    row: int
    labels: dict[str, str]
    origin: str = ""
    precomputed: Precomputed | None = None
    conditioning: Float[Tensor, "3 h w"] | None = None

    @property
    def shape(self) -> torch.Size:
        return self.content.shape

    @property
    def source(self) -> str:
        """The source of a sample of a data set; empty for an image in memory."""
        return self.origin.rsplit("\n", 2)[0]

    @property
    def picture(self) -> Float[Tensor, "3 h w"] | None:
        """The pixels that a page shows, of a clip those of its first frame; None where there are none."""
        return None if self.pixels is None else self.pixels.reshape(3, -1, *self.pixels.shape[-2:])[:, 0]

    @property
    def content(self) -> Tensor:
        """The image or clip for the model: the pixels, or the latent."""
        content = self.precomputed.latent if self.precomputed else self.pixels
        assert content is not None, "a sample has pixels, or a latent"
        return content


class Unusable(ValueError):
    """A row without a sample, and the reason by which rejects are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def samples(shard: Shard, data: DataConfig, resolution: int) -> Iterator[Sample | Reject]:
    """Every row of the shard, in order: a sample, or a reject.

    Reasons: no_id, no_caption, no_conditioning_image, caption_type, text, decode, too_small, too_few_frames, and those
    of the format.

    Args:
        shard: the rows, with their index.
        data: the settings that they are read with.
        resolution: side of the model's images, in pixels.
    """
    for row, image in zip(indexed_rows(shard), format_of(shard, data).images(shard, data), strict=True):
        yield _usable(row, image, shard, data, resolution)


def _usable(row: IndexedRow, image: RowImage, shard: Shard, data: DataConfig, resolution: int) -> Sample | Reject:
    try:
        return _sample(row, image, data, resolution, f"{shard.source}\n{shard.version}\n{row.number}")
    except Unusable as error:
        return Reject(
            sample_id=row.id, source=shard.source, row=row.number, reason=error.reason, message=str(error)[:300]
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


def _sample(row: IndexedRow, image: RowImage, data: DataConfig, resolution: int, origin: str) -> Sample:
    if flaw := image.flaw or row.flaw:
        raise Unusable(*flaw)
    precomputed = image.content if isinstance(image.content, Precomputed) else None
    if precomputed is None and not row.caption and caption_columns(data):
        raise Unusable("no_caption", f"{', '.join(caption_columns(data))} is empty; give the image a caption")
    if precomputed is not None:
        if not is_finite(precomputed):
            raise Unusable("decode", "its latent or embedding has an infinite or undefined number; encode it again")
        return Sample(
            id=row.id, caption=row.caption, pixels=None, row=row.number, labels=row.labels, origin=origin,
            precomputed=precomputed,
        )  # fmt: skip
    assert not isinstance(image.content, Precomputed)
    pixels = _pixels(image.content or b"", row.id, data, resolution)
    return Sample(
        id=row.id, caption=row.caption, pixels=pixels, row=row.number, labels=row.labels, origin=origin,
        conditioning=_conditioning(image, row.id, data, pixels),
    )  # fmt: skip


def _pixels(content: bytes, name: str, data: DataConfig, resolution: int) -> Float[Tensor, "3 *frames h w"]:
    """The pixels of an image file, or of the frames of a clip if the settings have their number."""
    if not data.frames:
        return to_tensor(_fitted(_decoded(content, data), name, data, resolution))
    try:
        clip = decode_clip(content, data.frames, data.spread_frames, data.transparency, data.most_pixels)
        return torch.stack([to_tensor(_fitted(frame, name, data, resolution)) for frame in clip], 1)
    except TooFewFrames as error:
        raise Unusable("too_few_frames", f"{error}; leave it out, or lower data.frames") from None
    except UserError as error:
        raise Unusable("decode", str(error)) from None


def _decoded(content: bytes, data: DataConfig) -> Image.Image:
    try:
        return decode_image(content, data.transparency, data.most_pixels)
    except UserError as error:
        raise Unusable("decode", str(error)) from None


def _conditioning(image: RowImage, name: str, data: DataConfig, pixels: Tensor) -> Tensor | None:
    """The conditioning image, cropped where the image is; None if the settings name no column of them."""
    if not (column := data.conditioning_image_column):
        return None
    if not image.conditioning:
        raise Unusable("no_conditioning_image", f"{column} is empty; give the image one, or leave it out")
    height, width = pixels.shape[-2:]
    picture = _decoded(image.conditioning, data)
    return to_tensor(resize_crop(picture, (height, width), _crop_position(name, data)))


def _fitted(image: Image.Image, name: str, data: DataConfig, resolution: int) -> Image.Image:
    size = nearest_bucket(image, data.buckets) if data.buckets else (resolution, resolution)
    if not data.enlarge and (image.height < size[0] or image.width < size[1]):
        raise Unusable(
            "too_small",
            f"the image is {image.width} x {image.height}, smaller than the crop of {size[1]} x {size[0]}; leave it "
            "out, or set data.enlarge=true",
        )
    return resize_crop(image, size, _crop_position(name, data))


def _crop_position(name: str, data: DataConfig) -> tuple[float, float]:
    """The `place` of `resize_crop` for a sample."""
    return (0.5, 0.5) if data.crop == "center" else (_drawn(name, "down"), _drawn(name, "across"))


def _drawn(name: str, way: str) -> float:
    """Uniform in [0, 1), the same in every run."""
    return key(name, "crop", way) / 2**63


@dataclass(frozen=True)
class FoundSample:
    """A sample that was looked up, with its image file as it lies in the data; None where it was encoded before."""

    row: IndexedRow
    sample: Sample
    original: bytes | None


def rows_by_id(shard: Shard, ids: Collection[str]) -> list[IndexedRow]:
    """The rows of a shard with these ids, in order."""
    return [row for row in indexed_rows(shard) if row.id in ids]


def samples_by_id(shard: Shard, data: DataConfig, resolution: int, ids: Collection[str]) -> Iterator[FoundSample]:
    """The samples of a shard with these ids, in order; of the source only what holds their images is read.

    They have no conditioning images.
    """
    data = replace(data, conditioning_image_column="")
    rows = rows_by_id(shard, ids)
    images = format_of(shard, data).chosen_images(shard, data, [row.number for row in rows])
    for row, image in zip(rows, images, strict=True):
        sample = _usable(row, image, shard, data, resolution)
        if isinstance(sample, Sample):
            yield FoundSample(row, sample, image.content if isinstance(image.content, bytes) else None)


def sample_of_image(
    row: IndexedRow, image: bytes, shard: Shard, data: DataConfig, resolution: int
) -> FoundSample | None:
    """The sample of a row whose image file is known, without a conditioning image; None if the file makes no sample."""
    data = replace(data, conditioning_image_column="")
    sample = _usable(row, RowImage(image), shard, data, resolution)
    return FoundSample(row, sample, image) if isinstance(sample, Sample) else None
