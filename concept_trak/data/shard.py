"""A shard: some rows of one version of one source. Its name depends on these, and never on its position."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from concept_trak.store.consistency import PlannedShard


@dataclass(frozen=True)
class Source:
    """A file of the data set, or a folder of images: its URL, its version and how many rows it has.

    The version is the store's etag, or size and modification time. It is empty where each range of rows has its own, a
    hash over its `places`. `places` holds where each row lies, in formats that need it.
    """

    uri: str
    version: str
    rows: int
    places: Sequence[Any] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Shard:
    """Rows first_row ... first_row + rows - 1 of a source; `places` of these rows alone."""

    source: str
    version: str
    first_row: int
    rows: int
    places: tuple[Any, ...] = field(default=(), compare=False, repr=False)

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


def cut(source: Source, shard_rows: int) -> list[Shard]:
    """A source's shards, aligned to its start; the last may be shorter."""
    return [_range(source, first, min(shard_rows, source.rows - first)) for first in range(0, source.rows, shard_rows)]


def whole(source: Source) -> Shard:
    """All rows of a source."""
    return _range(source, 0, source.rows)


def _range(source: Source, first: int, rows: int) -> Shard:
    places = tuple(source.places[first : first + rows])
    version = source.version or hashlib.sha256(repr(places).encode()).hexdigest()[:32]
    return Shard(source=source.uri, version=version, first_row=first, rows=rows, places=places)
