"""The interface of a format of training sets. A new format is one file in this folder that defines `FORMAT`.

No other file changes: the plan, the workers and the results call the functions below.
"""

import difflib
import pkgutil
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, NamedTuple

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data import inventory
from concept_trak.data.files import Files, Listing, list_files, version
from concept_trak.data.inventory import LeftOutCounts, Survey
from concept_trak.data.shard import Shard, Source
from concept_trak.data.text import printable, text_problem


@dataclass(frozen=True)
class SourceRow:
    """One row of a source.

    `number` is its place there, `id` the id made for it, `values` those of the columns that were asked for; None where
    the row has none. An image is {"bytes": ...}, as `datasets` writes it. `flaw`, a (reason, message), is why no sample
    can be made of it.
    """

    number: int
    id: str
    values: dict[str, Any]
    flaw: tuple[str, str] | None = None


class Format(NamedTuple):
    """One kind of training set: the endings of its files, and three functions that read them."""

    endings: tuple[str, ...]
    sources: Callable[[Listing, Files, DataConfig, LeftOutCounts], list[Source]]
    """(listing, files of this format, settings, tally) -> the sources, in the order of their names. What lies in the
    files and is no part of a sample is added to the tally."""
    check: Callable[[Source, DataConfig], Iterable[str]]
    """The columns of a source that the settings do not name. Raises UserError where a column that they name is not
    there, or is of a type that cannot be used."""
    rows: Callable[[Shard, DataConfig, Sequence[str]], Iterator[SourceRow]]
    """The rows of a shard with these columns, in order, reading nothing else; UserError if its source has changed."""
    companions: tuple[str, ...] = ()
    """Endings of files that accompany the samples: captions, metadata."""
    hidden: tuple[str, ...] = ()
    """Prefixes of the names of files and folders that are not data, in addition to a dot."""
    columns_may_lack: bool = False
    """Whether a source may lack a column that another source has; its rows then have no value for it."""
    split_in_name: bool = True
    """Whether a file's own name may name its split; a picture called test.png is no test set."""


def formats() -> dict[str, Format]:
    """The formats of all files in this folder that define one."""
    package = __name__.rpartition(".")[0]
    files = [file.name for file in pkgutil.iter_modules(import_module(package).__path__) if not file.ispkg]
    known = {name: getattr(import_module(f"{package}.{name}"), "FORMAT", None) for name in files}
    return {name: kind for name, kind in known.items() if isinstance(kind, Format)}


def survey_data(data: DataConfig) -> Survey:
    """Every source of the data set, by name, and all that is left out of it.

    Raises:
        UserError: nothing is there, it cannot be reached, is of no format or of several, or holds no rows.
    """
    listing, tally = list_files(data.uri), LeftOutCounts()
    if listing.is_file:
        files, name = listing.files, detect_format(listing.files, data)
    else:
        candidates = inventory.select_files(listing, data, tally)
        name = detect_format(candidates, data)
        files = _own_files(candidates, formats()[name], listing, data, tally)
    for info in files.values():
        version(info)  # a file without one is refused before any is opened
    sources = formats()[name].sources(listing, files, data, tally)
    if not any(source.rows for source in sources):
        left_out = inventory.describe_left_out(tally.left_out())
        raise UserError(
            f"data.uri={data.uri!r} has {len(files)} {name} files but no rows; point it at the data set"
            + (f" ({left_out})" if left_out else "")
        )
    return Survey(tuple(sources), tally.left_out())


def check_columns(survey: Survey, data: DataConfig) -> Survey:
    """The survey, after a check that every source has the columns that the settings name; others are left out.

    Raises:
        UserError: a column is missing, or of a type that cannot be used.
    """
    unread, tally, lacking = dict[str, None](), LeftOutCounts(), list[UserError]()
    for source in survey.sources:
        kind = format_of(source, data)
        try:
            unread |= dict.fromkeys(kind.check(source, data))
        except UserError as error:
            if not kind.columns_may_lack:
                raise
            lacking.append(error)
    if len(lacking) == len(survey.sources):
        raise lacking[0]
    tally.extend(survey.left_out)
    for column in unread:
        tally.add("column", "that no setting names", column)
    return replace(survey, left_out=tally.left_out())


def find_sources(data: DataConfig) -> list[Source]:
    """Every source of the data set, by name."""
    return list(survey_data(data).sources)


def _own_files(candidates: Files, kind: Format, listing: Listing, data: DataConfig, tally: LeftOutCounts) -> Files:
    """Those of a format; the others are left out."""
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
    known = formats()
    if data.format not in ("auto", *known):
        raise UserError(f"data.format={data.format!r} is not known; expected auto or one of: {', '.join(known)}")
    wanted = known if data.format == "auto" else {data.format: known[data.format]}
    there = {name: kind for name, kind in wanted.items() if any(_is_data(file, kind) for file in files)}
    if len(files) == len(wanted) == 1:
        there = wanted
    if "folder" in there:  # metadata.parquet beside pictures is no data set of its own
        there = {n: kind for n, kind in there.items() if any(_is_data(f, kind, known["folder"]) for f in files)}
    if not there:
        raise UserError(_nothing(files, wanted, data))
    if len(there) > 1:
        raise UserError(
            f"data.uri={data.uri!r} holds files of several formats ({', '.join(there)}); say which with data.format="
        )
    return next(iter(there))


def _is_data(name: str, kind: Format, other: Format | None = None) -> bool:
    """Whether a file has an ending of a format, and is not one that accompanies the samples of another."""
    lower = name.lower()
    return lower.endswith(kind.endings) and not (other and lower.endswith(other.companions))


def _nothing(files: Files, wanted: dict[str, Format], data: DataConfig) -> str:
    tally = LeftOutCounts()
    inventory.count_endings(map(posixpath.basename, files), Listing(None, "", {}), tally)
    there = inventory.describe_left_out(tally.left_out()).replace("left out", "there")
    endings = [", ".join(kind.endings[:5]) + ", ..." * (len(kind.endings) > 5) for kind in wanted.values()]
    return (
        f"data.uri={data.uri!r} holds no {', '.join(endings)} files; expected a file of training samples, or a "
        f"folder of them{f' ({there})' if there else ''}"
    )


def format_of(shard: Shard | Source, data: DataConfig) -> Format:
    """The format that a planned source is read in."""
    known, uri = formats(), shard.uri if isinstance(shard, Source) else shard.source
    if data.format != "auto":
        return known[data.format]
    return next((kind for kind in known.values() if uri.lower().endswith(kind.endings)), known["folder"])


def read_rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, whatever the format. A row with text that cannot be kept has a flaw and lacks that text."""
    for row in format_of(shard, data).rows(shard, data, columns):
        problems = {c: problem for c, value in row.values.items() if (problem := text_problem(c, value))}
        if problems:
            values = {c: None if c in problems else value for c, value in row.values.items()}
            row = replace(row, values=values, flaw=row.flaw or ("text", next(iter(problems.values()))))
        yield row


def named_columns(data: DataConfig) -> list[tuple[str, str]]:
    """(configuration key, column) of every column the configuration names."""
    single = [("data.caption_column", data.caption_column), ("data.id_column", data.id_column)]
    captions = [("data.other_captions", c) for c in data.other_captions]
    named = [("data.image_column", data.image_column), *((key, column) for key, column in single if column)]
    return [*named, *captions, *(("data.label_columns", c) for c in data.label_columns)]


def require_columns(
    data: DataConfig, there: Iterable[str], where: str, optional: Callable[[str, str], bool] = lambda key, column: False
) -> frozenset[str]:
    """The columns of `there` that the settings do not name.

    Args:
        where: the rest of the sentence "data.id_column='uid' is ...", such as "not a column of a.parquet".
        optional: whether (key, column) may be missing.

    Raises:
        UserError: one that they name is not there; the message has the nearest name.
    """
    known, named = list(there), named_columns(data)
    for key, column in named:
        if column not in known and not optional(key, column):
            near = difflib.get_close_matches(column, known, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{key}={column!r} is {where} (there: {', '.join(map(printable, known))}){hint}")
    return frozenset(known) - {column for _, column in named}


def require_text(key: str, column: str, values: Sequence[Any], where: str) -> None:
    """Check that a column of captions has values that are not numbers.

    Raises:
        UserError: all of them are numbers.
    """
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) for value in known):
        raise UserError(
            f"{key}={column!r} holds numbers in {where} (such as {known[0]!r}); name the column of captions, or set "
            "data.captions=class where it holds classes"
        )


def sample_id(row: SourceRow, data: DataConfig) -> str:
    """The id column's value, or the id that the format made."""
    own = row.values.get(data.id_column) if data.id_column else None
    return printable(row.id) if own is None else str(own)


def labels_of_row(row: SourceRow, data: DataConfig) -> dict[str, str]:
    """The values of the label columns as text; a column without a value is not among them."""
    return {c: str(value) for c in data.label_columns if (value := row.values.get(c)) is not None}


def label_values(shard: Shard, data: DataConfig) -> Iterator[tuple[str, dict[str, str]]]:
    """(sample id, its labels as text) of every row of a shard, without reading images."""
    for row in read_rows(shard, data, [*([data.id_column] if data.id_column else []), *data.label_columns]):
        yield sample_id(row, data), labels_of_row(row, data)
