"""The interface of a format of training sets. A new format is one file in this folder that defines `FORMAT`.

No other file changes: the plan, the workers and the results call the functions below.
"""

import difflib
import pkgutil
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data import inventory
from concept_trak.data.files import Files, Listing
from concept_trak.data.inventory import LeftOutCounts
from concept_trak.data.shard import NO_LAYOUT, Layout, Shard, Source
from concept_trak.data.text import printable, text_problem


class Precomputed(NamedTuple):
    """What a row has instead of an image and a text: x_0 [c, h, w] or [c, f, h, w], and each part of its condition."""

    latent: Tensor
    condition: dict[str, Tensor]


class Extent(NamedTuple):
    """Where an image is read from: `length` bytes from `offset` on, which begin `skip` rows before it."""

    offset: int
    length: int
    skip: int = 0


class SourceRow(NamedTuple):
    """One row of a source, without its image.

    `number` is its place there, `id` the id made for it, `values` those of the columns that the settings name; None
    where the row has none. `flaw`, a (reason, message), is why no sample can be made of it. `file` is the name and the
    version of the image's own file. `size` is the [width, height] of the image file, where it is known without a
    request of its own.
    """

    number: int
    id: str
    values: dict[str, Any]
    flaw: tuple[str, str] | None = None
    extent: Extent | None = None
    file: tuple[str, str] | None = None
    size: tuple[int, int] | None = None


class RowImage(NamedTuple):
    """What a row shows: an image file's bytes, or what was encoded before; None where there is none.

    `flaw` is why no sample can be made of it, as far as that is known before the image is decoded. `conditioning` is
    the file in `data.conditioning_image_column`.
    """

    content: bytes | Precomputed | None
    flaw: tuple[str, str] | None = None
    conditioning: bytes | None = None


@dataclass
class Findings:
    """What the index of a source finds beside its rows.

    Attributes:
        left_out: what is in the source and in no sample.
        unread: the columns that no setting names.
        lacking: why a column that the settings name is not there, where another source may have it.
        layout: how the images lie in the source.
    """

    left_out: LeftOutCounts = field(default_factory=LeftOutCounts)
    unread: list[str] = field(default_factory=list)
    lacking: str = ""
    layout: Layout = NO_LAYOUT


class Format(NamedTuple):
    """One kind of training set: the endings of its files, and three functions that read them."""

    endings: tuple[str, ...]
    sources: Callable[[Listing, Files, DataConfig, LeftOutCounts], list[Source]]
    """(listing, files of this format, settings, tally) -> the sources, in the order of their names, from the listing
    alone; their rows are unknown until they are indexed. Files that belong to no source are added to the tally."""
    rows: Callable[[Source, DataConfig, Findings], Iterator[SourceRow]]
    """Every row of a source, in order, with the values of the columns that the settings name but its image. Raises
    UserError where the source cannot be read, or a column is missing or of a type that cannot be used."""
    images: Callable[[Shard, DataConfig], Iterator[RowImage]]
    """The images of the rows of a shard, in order, found by its index and reading nothing else; UserError if its source
    has changed."""
    companions: tuple[str, ...] = ()
    """Endings of files that accompany the samples: captions, metadata."""
    hidden: tuple[str, ...] = ()
    """What the names of files and folders that are no data begin with, beside a dot."""
    split_in_name: bool = True
    """Whether a file's own name may name its split; a picture called test.png is no test set."""
    chosen: Callable[[Shard, DataConfig, Sequence[int]], Iterator[RowImage]] | None = None
    """`images` of some rows of a shard, by their rising numbers in the source, where it reads less than row by row."""

    def chosen_images(self, shard: Shard, data: DataConfig, rows: Sequence[int]) -> Iterator[RowImage]:
        """The images of some rows of a shard, by their rising numbers in the source. Nothing is read without rows."""
        if self.chosen and rows:
            return self.chosen(shard, data, rows)
        return (image for row in rows for image in self.images(shard.rows_from(row, 1), data))


def formats() -> dict[str, Format]:
    """The formats of all files in this folder that define one."""
    package = __name__.rpartition(".")[0]
    files = [file.name for file in pkgutil.iter_modules(import_module(package).__path__) if not file.ispkg]
    modules = {name: getattr(import_module(f"{package}.{name}"), "FORMAT", None) for name in files}
    return {name: kind for name, kind in modules.items() if isinstance(kind, Format)}


def own_files(candidates: Files, kind: Format, listing: Listing, data: DataConfig, tally: LeftOutCounts) -> Files:
    """The files of a format; the others are left out."""
    own, other = Files(), []
    for name, info in candidates.items():
        if kind.hidden and any(part.startswith(kind.hidden) for part in listing.relative(name).split("/")):
            tally.add("file", "with hidden names", listing.relative(name))
        elif name.lower().endswith(kind.endings + kind.companions):
            own[name] = info
        else:
            other.append(name)
    inventory.count_endings(other, listing, tally)
    own = inventory.select_pattern(own, listing, data, kind.endings, tally)
    return inventory.select_split(own, listing, data, kind.split_in_name, tally)


def detect_format(files: Files, data: DataConfig) -> str:
    """The format that the settings name, or the one that all files with a known ending have.

    Raises:
        UserError: an unknown format, no file of a known one, or files of several.
    """
    by_name = formats()
    if data.format not in ("auto", *by_name):
        raise UserError(f"data.format={data.format!r} is not known; expected auto or one of: {', '.join(by_name)}")
    candidates = by_name if data.format == "auto" else {data.format: by_name[data.format]}
    matching = {name: kind for name, kind in candidates.items() if any(_is_data(file, kind) for file in files)}
    if len(files) == len(candidates) == 1:
        matching = candidates
    if "folder" in matching:  # metadata.parquet beside pictures is no data set of its own
        matching = {n: kind for n, kind in matching.items() if any(_is_data(f, kind, by_name["folder"]) for f in files)}
    if not matching:
        raise UserError(_nothing(files, candidates, data))
    if len(matching) > 1:
        raise UserError(
            f"data.uri={data.uri!r} holds files of several formats ({', '.join(matching)}); say which with data.format="
        )
    return next(iter(matching))


def _is_data(name: str, kind: Format, other: Format | None = None) -> bool:
    """Whether a file has an ending of a format, and is not one that accompanies the samples of another."""
    lower = name.lower()
    return lower.endswith(kind.endings) and not (other and lower.endswith(other.companions))


def _nothing(files: Files, candidates: dict[str, Format], data: DataConfig) -> str:
    tally = LeftOutCounts()
    inventory.count_endings(map(posixpath.basename, files), Listing(None, "", {}), tally)
    contents = inventory.describe_left_out(tally.left_out()).replace("left out", "there")
    endings = [", ".join(kind.endings[:5]) + ", ..." * (len(kind.endings) > 5) for kind in candidates.values()]
    return (
        f"data.uri={data.uri!r} holds no {', '.join(endings)} files; expected a file of training samples, or a "
        f"folder of them{f' ({contents})' if contents else ''}"
    )


def format_of(shard: Shard | Source, data: DataConfig) -> Format:
    """The format that a planned source is read in."""
    by_name, uri = formats(), shard.uri if isinstance(shard, Source) else shard.source
    if data.format != "auto":
        return by_name[data.format]
    return next((kind for kind in by_name.values() if uri.lower().endswith(kind.endings)), by_name["folder"])


def checked_text(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """The rows; one with text that cannot be kept has a flaw and lacks that text."""
    for row in rows:
        problems = {c: problem for c, value in row.values.items() if (problem := text_problem(c, value))}
        if problems:
            values = {c: None if c in problems else value for c, value in row.values.items()}
            row = row._replace(values=values, flaw=row.flaw or ("text", next(iter(problems.values()))))
        yield row


def known_columns(data: DataConfig) -> list[str]:
    """The columns that an index is made from: all that the settings name, but those of images."""
    images = (data.image_column, data.conditioning_image_column)
    return [c for c in dict.fromkeys(c for _, c in named_columns(data)) if c not in images]


def named_columns(data: DataConfig) -> list[tuple[str, str]]:
    """(configuration key, column) of every column the configuration names."""
    names = ("conditioning_image_column", "caption_column", "id_column")
    single = [(f"data.{name}", getattr(data, name)) for name in names]
    captions = [("data.other_captions", c) for c in data.other_captions]
    named = [("data.image_column", data.image_column), *((key, column) for key, column in single if column)]
    return [*named, *captions, *(("data.label_columns", c) for c in data.label_columns)]


def require_columns(
    data: DataConfig,
    columns: Iterable[str],
    where: str,
    optional: Callable[[str, str], bool] = lambda key, column: False,
) -> frozenset[str]:
    """The given columns that the settings do not name.

    Args:
        where: the rest of the sentence "data.id_column='uid' is ...", such as "not a column of a.parquet".
        optional: whether (key, column) may be missing.

    Raises:
        UserError: one that they name is not there; the message has the nearest name.
    """
    available, named = list(columns), named_columns(data)
    for key, column in named:
        if column not in available and not optional(key, column):
            near = difflib.get_close_matches(column, available, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{key}={column!r} is {where} (there: {', '.join(map(printable, available))}){hint}")
    return frozenset(available) - {column for _, column in named}


def require_text(key: str, column: str, values: Sequence[Any], where: str) -> None:
    """Check that a column of captions has values that are not numbers.

    Raises:
        UserError: all of them are numbers.
    """
    texts = [value for value in values if value is not None]
    if texts and all(isinstance(value, (int, float)) for value in texts):
        raise UserError(
            f"{key}={column!r} holds numbers in {where} (such as {texts[0]!r}); name the column of captions, or set "
            "data.captions=class where it holds classes"
        )


def sample_id(row: SourceRow, data: DataConfig) -> str:
    """The id column's value, or the id that the format made where that is missing or empty."""
    own = row.values.get(data.id_column) if data.id_column else None
    return printable(row.id) if own is None or is_blank(own) else str(own)


def is_blank(value: Any) -> bool:
    """Whether a value is text of nothing but white space, which names no sample."""
    return isinstance(value, str) and not value.strip()


def labels_of_row(row: SourceRow, data: DataConfig) -> dict[str, str]:
    """The values of the label columns as text; a column without a value is not among them."""
    return {c: str(value) for c in data.label_columns if (value := row.values.get(c)) is not None}
