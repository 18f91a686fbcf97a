"""The two-factor benchmark: shapes x colours with one combination held out, as Parquet files that look like anyone's.

A concept is one factor ("triangle", or "red"); the training images that taught it are those that show it. The held-out
combination (a red triangle) asks for both factors of an image that was never trained on. After the synthetic experiment
of Concept-TRAK (Park et al. 2025, arXiv 2507.06547).

An image depends on (seed, index) alone, never on how many others are drawn, so a data set can be grown and re-cut.
"""

import io
import itertools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SHAPES = ("triangle", "circle", "square")
COLOURS = ("red", "green", "blue")
HELD_OUT = ("triangle", "red")

_CORNERS = {"triangle": 3, "circle": 64, "square": 4}
_PAINT = {"red": (215, 45, 45), "green": (45, 165, 70), "blue": (50, 80, 215)}
_OVERSAMPLING = 4  # drawn larger and averaged down: antialiasing, and sizes finer than a pixel
_ROW_GROUP = 64

_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {"id": _TEXT, "image": {"_type": "Image"}, "caption": _TEXT, "shape": _TEXT, "colour": _TEXT}
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_SCHEMA = pa.schema(
    {name: _IMAGE if name == "image" else pa.string() for name in _FEATURES},
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass(frozen=True)
class Drawing:
    """One labelled image of the benchmark."""

    id: str
    image: Image.Image
    shape: str
    colour: str

    @property
    def caption(self) -> str:
        return caption(self.shape, self.colour)


def combinations(held_out: tuple[str, str] | None = HELD_OUT) -> tuple[tuple[str, str], ...]:
    """Every (shape, colour) except `held_out`, in a fixed order."""
    pairs = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
    if held_out is not None and held_out not in pairs:
        raise ValueError(f"held_out={held_out} is no combination; expected None or (shape, colour), one of {pairs}.")
    return tuple(pair for pair in pairs if pair != held_out)


def caption(shape: str | None, colour: str | None) -> str:
    """The text of a combination; None leaves a factor unsaid: "a red triangle", "a triangle", "red", ""."""
    if shape is None:
        return colour or ""
    return f"a {colour} {shape}" if colour else f"a {shape}"


def draw(seed: int, index: int, held_out: tuple[str, str] | None = HELD_OUT, resolution: int = 32) -> Drawing:
    """Image `index` of the data set `seed`: the same for every caller, whatever else is drawn."""
    rng = np.random.default_rng([seed, index])
    pairs = combinations(held_out)
    shape, colour = pairs[rng.integers(len(pairs))]
    return Drawing(f"shapes-{index:06d}", render(shape, colour, rng, resolution), shape, colour)


def render(shape: str, colour: str, rng: np.random.Generator, resolution: int = 32) -> Image.Image:
    """An outlined shape of random size and place on a light gradient, RGB, `resolution` pixels square.

    Shapes of one size have equal areas (that of a circle 14 to 20 pixels across, of 32), so that the number of coloured
    pixels says nothing about the shape.
    """
    size = resolution * _OVERSAMPLING
    radius = rng.uniform(7, 10) / 32 * size * _equal_area(_CORNERS[shape])
    outline = size / 32 * 1.25
    edge = _polygon(_CORNERS[shape], radius)
    inside = _polygon(_CORNERS[shape], radius - outline / math.cos(math.pi / _CORNERS[shape]))
    low, high = edge.min(axis=0), edge.max(axis=0)
    shift = rng.uniform(1 - low, size - 1 - high)
    image = Image.fromarray(_background(rng, size))
    pencil = ImageDraw.Draw(image)
    pencil.polygon((edge + shift).ravel().tolist(), fill=_colour(rng.uniform(10, 60, 1).repeat(3)))
    pencil.polygon((inside + shift).ravel().tolist(), fill=_colour(_PAINT[colour] + rng.uniform(-25, 25, 3)))
    return image.resize((resolution, resolution), Image.Resampling.BOX)


def arrays(
    seed: int, first: int, count: int, held_out: tuple[str, str] | None = HELD_OUT, resolution: int = 32
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Images `first` to `first + count` as uint8 `[count, 3, resolution, resolution]`, and their (shape, colour)."""
    drawings = [draw(seed, index, held_out, resolution) for index in range(first, first + count)]
    images = np.stack([np.asarray(drawing.image).transpose(2, 0, 1) for drawing in drawings])
    return images, [(drawing.shape, drawing.colour) for drawing in drawings]


def write(
    folder: str | Path,
    rows: int,
    seed: int,
    held_out: tuple[str, str] | None = HELD_OUT,
    files: int = 4,
    resolution: int = 32,
    first: int = 0,
) -> list[Path]:
    """Images `first` to `first + rows` as `files` Parquet files of the layout and metadata of Hugging Face `datasets`.

    Columns: id, image (PNG bytes and a path), caption, shape, colour. The same arguments give the same bytes. A file
    that is already there and equal is left untouched, for its version (and so every feature computed from it) hangs on
    its modification time; one that differs raises ValueError.
    """
    if not 0 < files <= rows:
        raise ValueError(f"cannot write {rows} rows into {files} files; expected 1 <= files <= rows.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [first + rows * part // files for part in range(files + 1)]
    paths = [folder / f"train-{part:05d}-of-{files:05d}.parquet" for part in range(files)]
    for path, (start, stop) in zip(paths, itertools.pairwise(bounds), strict=True):
        _put(path, _parquet([draw(seed, index, held_out, resolution) for index in range(start, stop)]))
    return paths


def _parquet(drawings: list[Drawing]) -> bytes:
    rows = [
        {
            "id": drawing.id,
            "image": {"bytes": _png(drawing.image), "path": f"{drawing.id}.png"},
            "caption": drawing.caption,
            "shape": drawing.shape,
            "colour": drawing.colour,
        }
        for drawing in drawings
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, row_group_size=_ROW_GROUP)
    return sink.getvalue()


def _put(path: Path, content: bytes) -> None:
    if path.exists():
        if path.read_bytes() == content:
            return
        raise ValueError(
            f"{path} exists with other content than these arguments give; expected no file, or the same. "
            "Choose another folder, or delete the old data set."
        )
    unfinished = path.with_suffix(".unfinished")  # so that a killed run never leaves half a file under the final name
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _equal_area(corners: int) -> float:
    """Circumradius of the regular polygon with the area of the unit circle: n/2 R^2 sin(2 pi / n) = pi."""
    return math.sqrt(2 * math.pi / (corners * math.sin(2 * math.pi / corners)))


def _polygon(corners: int, radius: float) -> np.ndarray:
    """Corners of a regular polygon around the origin that stands on a flat side (y points down), `[corners, 2]`."""
    angle = math.pi / 2 + math.pi / corners + 2 * math.pi / corners * np.arange(corners)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A light grey with a slight tint and a soft gradient in a random direction, uint8 `[size, size, 3]`."""
    base = rng.uniform(190, 240) + rng.uniform(-8, 8, 3)
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 12)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    ramp = strength * (math.cos(angle) * x + math.sin(angle) * y)
    return np.clip(base + ramp[..., None], 0, 255).astype(np.uint8)


def _colour(channels: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in np.clip(channels, 0, 255))
    return red, green, blue
