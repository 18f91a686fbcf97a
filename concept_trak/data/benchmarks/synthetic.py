"""The benchmark's data sets as Parquet files that look like anyone's.

An image depends on (seed, index) alone, never on how many others are drawn, so a data set can grow and be cut anew.
"""

import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from concept_trak import UserError
from concept_trak.data.benchmarks.export import write_whole
from concept_trak.data.benchmarks.two_factors import SHAPES3, Pair, TwoFactors, pair_caption
from concept_trak.data.image import png

_ROW_GROUP = 64
SAID = "said_"
"""Prefix of the labels of a caption: `said_colour` is the colour that it names, and empty if it names none."""
EACH = "each"
"""As `unsaid`: every caption leaves one factor out, and a coin of its own says which."""


@dataclass(frozen=True)
class LabelledImage:
    """One labelled image: the pair it shows, and the pair its caption names, which may be another one.

    Attributes:
        named_pairs: the pairs that its caption names, in the caption's words.
        second_pair: the pair of the small thing beside it, if there is one.
    """

    id: str
    image: Image.Image
    image_pair: Pair
    caption_pair: Pair
    named_pairs: tuple[Pair, ...]
    second_pair: Pair | None = None

    @property
    def caption(self) -> str:
        return self.caption_naming((True, True))

    def caption_naming(self, named: tuple[bool, bool]) -> str:
        """The caption with some of the two factors only."""
        return " and ".join(filter(None, (pair_caption(*pair) for pair in self.named_by(named))))

    def named_by(self, named: tuple[bool, bool]) -> list[Pair]:
        """The pairs that this caption names, with "" for a factor that it leaves out."""
        thing, look = named
        return [(own[0] if thing else "", own[1] if look else "") for own in self.named_pairs]

    @property
    def shown_pairs(self) -> list[Pair]:
        """The pairs that the image shows."""
        return [self.image_pair, *([self.second_pair] if self.second_pair else [])]


def draw_labelled(
    seed: int, index: int, kinds: TwoFactors = SHAPES3, resolution: int | None = None, wrong: float = 0.0
) -> LabelledImage:
    """Image `index` of the data set `seed`: the same for every caller, whatever else is drawn.

    With probability `wrong` its caption is that of another pair that training knows, drawn apart from the image.
    Where a set has synonyms or a second thing in each image, coins of their own decide what the caption says.
    """
    if not 0 <= wrong <= 1:
        raise UserError(f"wrong={wrong}: expected the probability, in 0 ... 1, that a caption is another pair's")
    rng = np.random.default_rng([seed, index])
    pairs = kinds.pairs
    image_pair = caption_pair = pairs[rng.integers(len(pairs))]
    side, second_pair = resolution or kinds.resolution, None
    if kinds.render_two:
        second_pair = pairs[rng.integers(len(pairs))]
        image = kinds.render_two(image_pair, second_pair, rng, side)
    else:
        image = kinds.render(*image_pair, rng, side)
    words = np.random.default_rng([seed, index, 1])
    if words.random() < wrong:
        others = [pair for pair in pairs if pair != image_pair]
        caption_pair = others[words.integers(len(others))]
    coins = np.random.default_rng([seed, index, 3]).random((2, 3)) < 0.5
    pairs_of_caption = [caption_pair, *([second_pair] if second_pair and coins[0, 2] else [])]
    return LabelledImage(
        id=f"{kinds.factor}s-{index:06d}",
        image=image,
        image_pair=image_pair,
        caption_pair=caption_pair,
        named_pairs=tuple(_in_words(kinds, pair, own) for pair, own in zip(pairs_of_caption, coins, strict=False)),
        second_pair=second_pair,
    )


def _in_words(kinds: TwoFactors, pair: Pair, coins: np.ndarray) -> Pair:
    """The pair with the second word of each factor whose coin is true, where it has one."""
    second = dict(kinds.synonyms)
    thing, look = (second.get(value, value) if coin else value for value, coin in zip(pair, coins, strict=False))
    return thing, look


def arrays(
    seed: int,
    first: int,
    count: int,
    kinds: TwoFactors = SHAPES3,
    resolution: int | None = None,
    wrong: float = 0.0,
) -> tuple[np.ndarray, list[LabelledImage]]:
    """Images `first` to `first + count` as uint8 `[count, 3, resolution, resolution]`, beside what is known of each."""
    drawings = [draw_labelled(seed, index, kinds, resolution, wrong) for index in range(first, first + count)]
    return np.stack([np.asarray(drawing.image).transpose(2, 0, 1) for drawing in drawings]), drawings


def write_synthetic(
    folder: str | Path,
    rows: int,
    seed: int,
    kinds: TwoFactors = SHAPES3,
    files: int = 4,
    resolution: int | None = None,
    first: int = 0,
    wrong: float = 0.0,
    unsaid: str = "",
) -> list[Path]:
    """Images `first` to `first + rows` as `files` Parquet files of the layout and metadata of Hugging Face `datasets`.

    Columns: id, image (PNG bytes and a path), caption, the labels of what an image shows (shape, colour), and where a
    caption can be wrong, incomplete or in other words, those of what it says (said_shape, said_colour). Captions leave
    out the factor `unsaid` ("colour"), or each one of the factors, by a coin keyed by (seed, index), if it is `each`.
    The same arguments give the same bytes. A file that is already there and equal is left untouched, for its version
    (and so every feature computed from it) hangs on its modification time; one that differs raises UserError.
    """
    if not 0 < files <= rows:
        raise UserError(f"cannot write {rows} rows into {files} files; expected 1 <= files <= rows.")
    if unsaid not in ("", EACH, *kinds.columns):
        expected = " or ".join((*kinds.columns, EACH))
        raise UserError(f"unsaid={unsaid!r} is no factor of {kinds.name}; expected {expected}, or ''")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [first + rows * part // files for part in range(files + 1)]
    paths = [folder / f"train-{part:05d}-of-{files:05d}.parquet" for part in range(files)]
    for path, (start, stop) in zip(paths, itertools.pairwise(bounds), strict=True):
        drawings = [draw_labelled(seed, index, kinds, resolution, wrong) for index in range(start, stop)]
        named = [named_factors(kinds, unsaid, seed, index) for index in range(start, stop)]
        _write_unchanged(path, _parquet(kinds, drawings, labels_of(kinds, wrong, unsaid), named))
    return paths


def labels_of(kinds: TwoFactors, wrong: float = 0.0, unsaid: str = "") -> tuple[str, ...]:
    """The label columns of a data set: what an image shows, and what its caption says if that can be anything else."""
    pairs = zip(kinds.columns, kinds.values, strict=True)
    shown = tuple(dict.fromkeys(kinds.label(factor, value) for factor, values in pairs for value in values))
    is_other = wrong or unsaid or kinds.synonyms or kinds.render_two
    return shown + (tuple(f"{SAID}{name}" for name in shown) if is_other else ())


def named_factors(kinds: TwoFactors, unsaid: str, seed: int, index: int) -> tuple[bool, bool]:
    """Whether the caption of image `index` names each factor; `unsaid` is as of `write_synthetic`."""
    if unsaid == EACH:
        unsaid = kinds.columns[np.random.default_rng([seed, index, 2]).integers(2)]
    thing, look = (name != unsaid for name in kinds.columns)
    return thing, look


def _parquet(
    kinds: TwoFactors, drawings: list[LabelledImage], labels: tuple[str, ...], named: list[tuple[bool, bool]]
) -> bytes:
    rows = [
        {
            "id": drawing.id,
            "image": {"bytes": png(drawing.image), "path": f"{drawing.id}.png"},
            "caption": drawing.caption_naming(own),
            **kinds.labels(drawing.shown_pairs),
            **{f"{SAID}{name}": value for name, value in kinds.labels(drawing.named_by(own)).items()},
        }
        for drawing, own in zip(drawings, named, strict=True)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema(labels)), sink, row_group_size=_ROW_GROUP)
    return sink.getvalue()


def _schema(labels: tuple[str, ...]) -> pa.Schema:
    text = {"dtype": "string", "_type": "Value"}
    names = {"id": text, "image": {"_type": "Image"}, "caption": text, **dict.fromkeys(labels, text)}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.schema(
        {name: image if name == "image" else pa.string() for name in names},
        metadata={"huggingface": json.dumps({"info": {"features": names}})},
    )


def _write_unchanged(path: Path, content: bytes) -> None:
    """Leaves an equal file as it is, because its version is its modification time."""
    if not path.exists():
        write_whole(path, content)
    elif path.read_bytes() != content:
        raise UserError(
            f"{path} exists with other content than these arguments give; expected no file, or the same. "
            "Choose another folder, or delete the old data set."
        )
