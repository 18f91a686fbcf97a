"""From the rows of a shard to samples ready for the model, or rejects that say why not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from concept_trak.config import DataConfig
from concept_trak.data.caption import caption, caption_columns
from concept_trak.data.format import Row, named_columns, rows, sample_id
from concept_trak.data.image import bucket, crop, decode, to_tensor
from concept_trak.data.shard import Shard
from concept_trak.noise import key
from concept_trak.store.part import Reject


@dataclass(frozen=True)
class Sample:
    """One training image with its caption; `row` is its row in the source."""

    id: str
    caption: str
    pixels: Float[Tensor, "3 h w"]
    row: int
    labels: dict[str, str]


class Unusable(ValueError):
    """A row without a sample, and the reason by which rejects are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def samples(shard: Shard, data: DataConfig, resolution: int) -> Iterator[Sample | Reject]:
    """Every row of the shard, in order: a sample, or a reject.

    Reasons are no_caption, caption_type, decode, too_small, and those of the format.
    """
    for row in rows(shard, data, list(dict.fromkeys(column for _, column in named_columns(data)))):
        name = sample_id(row, data)
        try:
            yield _sample(row, name, data, resolution)
        except Unusable as error:
            yield Reject(name, shard.source, row.number, error.reason, str(error)[:300])


def _sample(row: Row, name: str, data: DataConfig, resolution: int) -> Sample:
    if row.flaw:
        raise Unusable(*row.flaw)
    text = _caption(row, name, data)
    try:
        image = decode((row.values[data.image_column] or {}).get("bytes") or b"")
    except ValueError as error:
        raise Unusable("decode", str(error)) from None
    pixels = to_tensor(_fitted(image, name, data, resolution))
    return Sample(name, text, pixels, row.number, {c: str(row.values[c]) for c in data.label_columns})


def _caption(row: Row, name: str, data: DataConfig) -> str:
    try:
        text = caption(row.values, name, data)
    except ValueError as error:
        raise Unusable("caption_type", str(error)) from None
    if not text:
        raise Unusable("no_caption", f"{', '.join(caption_columns(data))} is empty; give the image a caption")
    return text


def _fitted(image: Image.Image, name: str, data: DataConfig, resolution: int) -> Image.Image:
    size = bucket(image, data.buckets) if data.buckets else (resolution, resolution)
    if not data.enlarge and (image.height < size[0] or image.width < size[1]):
        raise Unusable(
            "too_small",
            f"the image is {image.width} x {image.height}, smaller than the crop of {size[1]} x {size[0]}; leave it "
            "out, or set data.enlarge=true",
        )
    place = (0.5, 0.5) if data.crop == "center" else (_drawn(name, "down"), _drawn(name, "across"))
    return crop(image, size, place)


def _drawn(name: str, way: str) -> float:
    """Uniform in [0, 1), the same in every run."""
    return key(name, "crop", way) / 2**63


def found(shard: Shard, data: DataConfig, resolution: int, ids: Sequence[str]) -> list[Sample]:
    """The samples of a shard with these ids: what the page shows."""
    wanted = set(ids)
    return [s for s in samples(shard, data, resolution) if isinstance(s, Sample) and s.id in wanted]
