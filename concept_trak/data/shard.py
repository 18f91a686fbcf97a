"""A shard: some rows of one version of one source. Its name depends on these, and never on its position."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from concept_trak.store.consistency import PlannedShard

UNKNOWN = -1
"""The rows of a source that is not indexed yet."""


class StoredIndex(NamedTuple):
    """A file that holds what is known of `rows` rows of a source, from `first_row` on."""

    name: str
    first_row: int
    rows: int


class Layout(NamedTuple):
    """Which rows of a file are read together. All is 0 where an image is read by itself, or where this is unknown.

    Attributes:
        group_rows: the most rows of a row group.
        page_rows: the most rows of a page of images, which is read whole; 0 where a row group is read from its start.
        image_bytes: of all images, as they are in the file.
    """

    group_rows: int = 0
    page_rows: int = 0
    image_bytes: int = 0


NO_LAYOUT = Layout()


@dataclass(frozen=True)
class Source:
    """A file of the data set, or a folder of images: its URL, its version and how many rows it has.

    The version is the store's etag, or size and modification time. It is empty where each range of rows has its own, a
    hash over its `places`.

    Attributes:
        rows: `UNKNOWN` until the source is indexed.
        places: the files of the rows, in the format of folders.
        first_row: the number of its first row; not 0 in a range of a folder that is indexed by itself.
        index: what is known of each row (`index.schema`), where that is in memory.
        stored: where it lies on storage.
        layout: how its images lie in its file.
    """

    uri: str
    version: str
    rows: int
    places: Sequence[Any] = field(default=(), compare=False, repr=False)
    first_row: int = 0
    index: pa.Table | None = field(default=None, compare=False, repr=False)
    stored: tuple[StoredIndex, ...] = field(default=(), compare=False, repr=False)
    layout: Layout = field(default=NO_LAYOUT, compare=False, repr=False)


@dataclass(frozen=True)
class Shard:
    """Rows first_row ... first_row + rows - 1 of a source.

    `index` holds what is known of these rows alone; None until it is read from storage, where `stored` lies.
    """

    source: str
    version: str
    first_row: int
    rows: int
    index: pa.Table | None = field(default=None, compare=False, repr=False)
    stored: tuple[StoredIndex, ...] = field(default=(), compare=False, repr=False)

    @cached_property
    def name(self) -> str:
        """A readable stem, the first row, and a hash over source, version and range."""
        stem = self.source.rstrip("/").rpartition("/")[2].split(".")[0][:40]
        return f"{stem}-{self.first_row:09d}-{self.hash[:12]}"

    @property
    def planned(self) -> PlannedShard:
        """The plan of the shard, with which its files are compared."""
        return PlannedShard(self.name, self.source, self.first_row, self.rows)

    @cached_property
    def hash(self) -> str:
        text = f"{self.source}\n{self.version}\n{self.first_row}\n{self.rows}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def index_table(self) -> pa.Table:
        """`index`, once it is read: a row of what is known for each row of the shard (`index.schema`)."""
        assert self.index is not None, f"{self.name} has no index"
        assert self.index.num_rows == self.rows, f"{self.name} has the index of other rows"
        return self.index

    def rows_from(self, first_row: int, rows: int) -> "Shard":
        """Some consecutive rows, as a shard of their own."""
        return replace(
            self, first_row=first_row, rows=rows, index=self.index_table.slice(first_row - self.first_row, rows)
        )


def cut(source: Source, shard_rows: int) -> list[Shard]:
    """A source's shards, aligned to its start; the last may be shorter."""
    return [_range(source, first, min(shard_rows, source.rows - first)) for first in range(0, source.rows, shard_rows)]


def whole(source: Source) -> Shard:
    """All rows of a source."""
    return _range(source, 0, source.rows)


def version_of_files(places: Sequence[Any]) -> str:
    """The version of a range of a folder: a hash over the names and versions of its files."""
    return hashlib.sha256(repr(tuple(places)).encode()).hexdigest()[:32]


def _range(source: Source, first: int, rows: int) -> Shard:
    version = source.version or version_of_files(source.places[first : first + rows])
    index = None if source.index is None else source.index.slice(first, rows)
    stored = tuple(s for s in source.stored if s.first_row < first + rows and first < s.first_row + s.rows)
    return Shard(
        source=source.uri, version=version, first_row=source.first_row + first, rows=rows, index=index, stored=stored
    )
