"""Real files for the data tests: images as bytes, and Parquet files as Hugging Face `datasets` writes them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data.shard import Shard, Source
from concept_trak.data.survey import indexed_here, list_sources

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image in which every pixel differs from its neighbours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rows(count: int, first: int = 0, **columns: Sequence[Any]) -> dict[str, list[Any]]:
    """`count` rows: id "s<n>", a 4 x 4 image that says n in its colour, a caption; `columns` replace or add."""
    numbers = range(first, first + count)
    images = [encoded(Image.new("RGB", (4, 4), (n % 256, n // 256, 0))) for n in numbers]
    return {
        "id": [f"s{n}" for n in numbers],
        "image": [{"bytes": data, "path": f"{n}.png"} for n, data in zip(numbers, images, strict=True)],
        "caption": [f"caption {n}" for n in numbers],
        **{name: list(values) for name, values in columns.items()},
    }


def write(
    path: str | Path, values: dict[str, list[Any]], group: int = 1000, kinds: dict[str, Any] | None = None
) -> str:
    """A Parquet file with row groups of `group` rows; `kinds` names the types of columns that are no strings."""
    table = {n: pa.array(v, (kinds or {}).get(n, IMAGE if n == "image" else pa.string())) for n, v in values.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=group)
    return str(path)


def plan(data: DataConfig) -> list[Shard]:
    return shards(indexed_here(data).sources, data.shard_rows)


def sources(uri: str) -> list[Source]:
    return list(list_sources(DataConfig(uri=uri)).sources)
