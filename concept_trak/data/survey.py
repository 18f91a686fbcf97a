"""The survey of a data set before it is used: its sources, their rows, and the checks of settings, columns and ids."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from concept_trak import UserError
from concept_trak.attribution.denoiser import Conditioning
from concept_trak.config import DataConfig
from concept_trak.data import inventory
from concept_trak.data.files import list_files, version
from concept_trak.data.format import Findings, detect_format, format_of, formats, own_files
from concept_trak.data.index import SourceFacts, SourceIndex, index_source
from concept_trak.data.inventory import LeftOut, LeftOutCounts, Survey
from concept_trak.data.shard import Source

PEEKED, PEEKED_ROWS = 3, 16  # the driver reads this many rows of this many sources before workers start


def survey(data: DataConfig, conditioning: Conditioning = "text") -> Survey:
    """The data set's sources, indexed in this process and checked for a model with this conditioning.

    Raises:
        UserError: there are no data, a column is missing or of another type, or ids occur twice.
    """
    require_caption_setting(data, conditioning)
    surveyed = indexed_here(data)
    require_unique_ids(surveyed.sources, data)
    return surveyed


def require_caption_setting(data: DataConfig, conditioning: Conditioning) -> None:
    """Require caption settings that fit the model's conditioning. Raises UserError."""
    if not data.caption_column and conditioning != "none":
        raise UserError(
            f"data.caption_column is empty, and the model's conditioning is {conditioning}; name the column with the "
            f"{conditioning}"
        )
    if (data.captions == "class") != (conditioning == "class") and conditioning != "none":
        remedy = "class" if conditioning == "class" else "first"
        raise UserError(
            f"data.captions={data.captions}, and the model's conditioning is {conditioning}; set data.captions={remedy}"
        )


def indexed_here(data: DataConfig) -> Survey:
    """The data set's sources, each with its index, computed in this process."""
    listed = list_sources(data)
    indices = [index_source(source, data) for source in listed.sources]
    sources = [
        replace(source, rows=index.table.num_rows, index=index.table, layout=index.layout)
        for source, index in zip(listed.sources, indices, strict=True)
    ]
    return surveyed(data, listed, sources, indices)


def list_sources(data: DataConfig) -> Survey:
    """Every source of the data set, ordered by name, from a listing alone.

    The number of rows is unknown, except for a folder of images.

    Raises:
        UserError: there are no data, they cannot be reached, or they have no known format or several formats.
    """
    listing, tally = list_files(data.uri), LeftOutCounts()
    if listing.is_file:
        files, name = listing.files, detect_format(listing.files, data)
    else:
        candidates = inventory.select_files(listing, data, tally)
        name = detect_format(candidates, data)
        files = own_files(candidates, formats()[name], listing, data, tally)
    for info in files.values():
        version(info)  # refuses a file without a version before any file is opened
    sources = formats()[name].sources(listing, files, data, tally)
    if not sources:
        raise _no_rows(data, len(files), name, tally.left_out())
    return Survey(sources=tuple(sources), left_out=tally.left_out(), files=len(files), format=name)


def check_first_rows(listed: Survey, sources: Sequence[Source], data: DataConfig) -> None:
    """Read the first rows and refuse what is wrong with them, before a worker starts.

    Args:
        listed: the data set.
        sources: its sources without an index.
        data: the settings of the data.

    Raises:
        UserError: the first source cannot be read or lacks a column, or the data set has few sources and no rows.
    """
    for source in sources[:PEEKED]:
        findings = Findings()
        rows = list(islice(format_of(source, data).rows(source, data, findings), PEEKED_ROWS))
        if findings.lacking and len(listed.sources) == 1:
            raise _lacking(findings.lacking, listed.left_out)
        if rows:
            return
    if len(listed.sources) <= len(sources[:PEEKED]):
        raise _no_rows(data, listed.files, listed.format, listed.left_out)


def surveyed(
    data: DataConfig, listed: Survey, sources: Sequence[Source], indices: Sequence[SourceIndex | SourceFacts]
) -> Survey:
    """The survey of indexed sources, with everything in the data that is left out.

    Args:
        data: the settings of the data.
        listed: the data set from `list_sources`.
        sources: its sources with their rows.
        indices: the index, or the facts, of each source.

    Raises:
        UserError: there are no rows, or no source has a column that the settings name.
    """
    lacking = [index.lacking for index in indices if index.lacking]
    if lacking and len(lacking) == len(indices):
        raise _lacking(lacking[0], listed.left_out)
    tally = LeftOutCounts()
    tally.extend(listed.left_out)
    for index in indices:
        tally.extend(index.left_out)
    if not any(source.rows for source in sources):
        raise _no_rows(data, listed.files, listed.format, tally.left_out())
    for column in dict.fromkeys(column for index in indices for column in index.unread):
        tally.add("column", "that no setting names", column)
    return replace(listed, sources=tuple(sources), left_out=tally.left_out())


def _lacking(reason: str, left_out: Sequence[LeftOut]) -> UserError:
    """The error for a column that no source has; it may be in a file that is left out."""
    described = inventory.describe_left_out(left_out)
    return UserError(reason + (f"; {described}" if described else ""))


def _no_rows(data: DataConfig, files: int, kind: str, left_out: Sequence[LeftOut]) -> UserError:
    described = inventory.describe_left_out(left_out)
    return UserError(
        f"data.uri={data.uri!r} has {files} {kind} files but no rows; point it at the data set"
        + (f" ({described})" if described else "")
    )


def require_unique_ids(sources: Iterable[Source], data: DataConfig) -> None:
    """Require unique ids over sources with their indices in memory. Ids made from source and row are always unique.

    Raises:
        UserError: some ids occur twice; the message names some of them and their sources.
    """
    if not data.id_column:
        return
    where: dict[str, list[str]] = {}
    for source in sources:
        assert source.index is not None, "ids are compared once the sources are indexed"
        for name in source.index["id"].to_pylist():
            where.setdefault(name, []).append(source.uri)
    repeated = {name: uris for name, uris in where.items() if len(uris) > 1}
    if repeated:
        raise repeated_ids(data, repeated)


def repeated_ids(data: DataConfig, repeated: dict[str, list[str]]) -> UserError:
    """The error for ids that occur more than once.

    Args:
        data: the settings of the data.
        repeated: some of the ids, each with the sources that have it.
    """
    examples = sorted(repeated)[:5]
    uris = dict.fromkeys(uri for name in examples for uri in repeated[name])
    where = ", ".join(list(uris)[:4]) + ", ..." * (len(uris) > 4)
    return UserError(
        f"data.id_column={data.id_column!r} is not unique: {', '.join(name[:80] for name in examples)} occur more than "
        f"once (in {where}); name a column of unique ids, or leave data.id_column empty to have them made"
    )
