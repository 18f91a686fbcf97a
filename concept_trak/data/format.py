"""What a format of training sets says of itself. A new format is one file in this folder that defines `FORMAT`.

Nothing else needs to know of it: the plan, the workers and the results ask the functions below.
"""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from concept_trak.config import DataConfig
from concept_trak.data.files import list_files
from concept_trak.data.shard import Shard, Source

Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class SourceRow:
    """One row of a source: its number there, the id made for it, and the values of the columns that were asked for.

    An image is {"bytes": ...}, as `datasets` writes it. What the row has not is None. `flaw`, a (reason, message), says
    why there is no sample in it.
    """

    number: int
    id: str
    values: dict[str, Any]
    flaw: tuple[str, str] | None = None


class Format(NamedTuple):
    """How one kind of training set lies on storage: four functions, and the endings that its files are known by."""

    endings: tuple[str, ...]
    sources: Callable[[Any, str, Files, DataConfig], list[Source]]
    """(file system, path, files of these endings, settings) -> the sources, in the order of their names."""
    check: Callable[[Source, DataConfig], None]
    """Raises ValueError where a column that the settings name is not there, or is of a type that cannot be used."""
    rows: Callable[[Shard, DataConfig, Sequence[str]], Iterator[SourceRow]]
    """The rows of a shard with these columns, in order, reading nothing else; ValueError if its source has changed."""
    beside: tuple[str, ...] = ()
    """Endings of files that belong to the samples without being any."""


def formats() -> dict[str, Format]:
    """The format of every file here that defines one."""
    here = __name__.rpartition(".")[0]
    files = [file.name for file in pkgutil.iter_modules(import_module(here).__path__)]
    found = {name: getattr(import_module(f"{here}.{name}"), "FORMAT", None) for name in files}
    return {name: one for name, one in found.items() if isinstance(one, Format)}


def find_sources(data: DataConfig) -> list[Source]:
    """Every source of the data set, by name.

    Raises:
        ValueError: nothing is there, it cannot be reached, is of no format or of several, or holds no rows.
    """
    fs, path, files = list_files(data.uri)
    kind, known = detect_format(files, data), formats()
    own = files if list(files) == [path] else _ending(files, known[kind].endings + known[kind].beside)
    found = known[kind].sources(fs, path, own, data)
    if not any(source.rows for source in found):
        raise ValueError(f"data.uri={data.uri!r} has {len(own)} {kind} files but no rows; point it at the data set")
    return found


def detect_format(files: Files, data: DataConfig) -> str:
    """The format that the settings name, or the one that all files with a known ending have.

    Raises:
        ValueError: an unknown format, no file of a known one, or files of several.
    """
    known = formats()
    if data.format not in ("auto", *known):
        raise ValueError(f"data.format={data.format!r} is not known; expected auto or one of: {', '.join(known)}")
    asked = known if data.format == "auto" else {data.format: known[data.format]}
    there = {kind: one for kind, one in asked.items() if _ending(files, one.endings)}
    if len(files) == len(asked) == 1:
        there = asked
    if not there:
        endings = [ending for one in asked.values() for ending in one.endings]
        raise ValueError(
            f"data.uri={data.uri!r} holds no {', '.join(endings)} files; expected a file of training samples, or a "
            "folder of them"
        )
    if len(there) > 1:
        raise ValueError(
            f"data.uri={data.uri!r} holds files of several formats ({', '.join(there)}); say which with data.format="
        )
    return next(iter(there))


def _ending(files: Files, endings: tuple[str, ...]) -> Files:
    return {name: info for name, info in files.items() if name.lower().endswith(endings)}


def format_of(shard: Shard | Source, data: DataConfig) -> Format:
    """The format that a planned source is read in."""
    known, uri = formats(), shard.uri if isinstance(shard, Source) else shard.source
    if data.format != "auto":
        return known[data.format]
    return next((one for one in known.values() if uri.lower().endswith(one.endings)), known["folder"])


def read_rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, whatever the format."""
    return format_of(shard, data).rows(shard, data, columns)


def named_columns(data: DataConfig) -> list[tuple[str, str]]:
    """(configuration key, column) of every column the configuration names."""
    single = [("data.caption_column", data.caption_column), ("data.id_column", data.id_column)]
    more = [("data.other_captions", c) for c in data.other_captions]
    named = [("data.image_column", data.image_column), *(one for one in single if one[1])]
    return [*named, *more, *(("data.label_columns", c) for c in data.label_columns)]


def sample_id(row: SourceRow, data: DataConfig) -> str:
    """The id column's value, or the id that the format made."""
    own = row.values.get(data.id_column) if data.id_column else None
    return row.id if own is None else str(own)


def label_values(shard: Shard, data: DataConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """(sample id, its labels as text) of every row of a shard, without reading images."""
    for row in read_rows(shard, data, [*([data.id_column] if data.id_column else []), *data.label_columns]):
        yield sample_id(row, data), {c: str(row.values[c]) for c in data.label_columns}
