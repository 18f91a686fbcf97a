"""A shard: some rows of one version of one file, named by what it holds and never by its position."""

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Source:
    """A file of the data set: its URL, its version (etag, or size and modification time) and how many rows it has."""

    uri: str
    version: str
    rows: int


@dataclass(frozen=True)
class Shard:
    """Rows first_row ... first_row + rows - 1 of a source."""

    source: str
    version: str
    first_row: int
    rows: int

    @cached_property
    def name(self) -> str:
        """A readable stem, the first row, and a hash over source, version and range."""
        stem = self.source.rpartition("/")[2].split(".")[0][:40]
        return f"{stem}-{self.first_row:09d}-{self.hash[:12]}"

    @cached_property
    def hash(self) -> str:
        text = f"{self.source}\n{self.version}\n{self.first_row}\n{self.rows}"
        return hashlib.sha256(text.encode()).hexdigest()


def cut(source: Source, shard_rows: int) -> list[Shard]:
    """A source's shards, aligned to its start; the last may be shorter."""
    return [
        Shard(source.uri, source.version, first, min(shard_rows, source.rows - first))
        for first in range(0, source.rows, shard_rows)
    ]
