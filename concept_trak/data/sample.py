"""From the rows of a shard to samples ready for the model, or rejects that say why not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from concept_trak.config import DataConfig
from concept_trak.data.image import decode, fit, to_tensor
from concept_trak.data.parquet import named_columns, rows, sample_id
from concept_trak.data.shard import Shard
from concept_trak.store.part import Reject


@dataclass(frozen=True)
class Sample:
    """One training image with its caption; `row` is its row in the source."""

    id: str
    caption: str
    pixels: Float[Tensor, "3 h w"]
    row: int
    labels: dict[str, str]


def samples(shard: Shard, data: DataConfig, resolution: int) -> Iterator[Sample | Reject]:
    """Every row of the shard, in order: a sample, or a reject with reason `no_caption` or `decode`."""
    for row, values in rows(shard, [column for _, column in named_columns(data)]):
        yield _sample(row, values, shard, data, resolution)


def _sample(row: int, values: dict[str, Any], shard: Shard, data: DataConfig, resolution: int) -> Sample | Reject:
    name = sample_id(row, values, shard, data)
    caption = values[data.caption_column]
    if caption is None or not caption.strip():
        return Reject(
            name, shard.source, row, "no_caption", f"{data.caption_column} is empty; give the image a caption"
        )
    try:
        image = fit(decode((values[data.image_column] or {}).get("bytes") or b""), resolution)
    except ValueError as error:
        return Reject(name, shard.source, row, "decode", str(error)[:300])
    return Sample(name, caption, to_tensor(image), row, {c: str(values[c]) for c in data.label_columns})


def found(shard: Shard, data: DataConfig, resolution: int, ids: Sequence[str]) -> list[Sample]:
    """The samples of a shard with these ids: what the page shows."""
    wanted = set(ids)
    return [s for s in samples(shard, data, resolution) if isinstance(s, Sample) and s.id in wanted]
