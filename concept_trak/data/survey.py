"""A data set before it is used: its sources by name, what is known of each, and that their ids are unique."""

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

PEEKED, PEEKED_ROWS = 3, 16  # sources, and rows of each, that are read before workers start


def survey(data: DataConfig, conditioning: Conditioning = "text") -> Survey:
    """The sources, indexed in this process, once they are known to be usable by a model of this conditioning.

    Raises:
        UserError: nothing there, a column missing or of another type, ids that occur twice.
    """
    require_caption_setting(data, conditioning)
    surveyed = indexed_here(data)
    require_unique_ids(surveyed.sources, data)
    return surveyed


def require_caption_setting(data: DataConfig, conditioning: Conditioning) -> None:
    """That the settings name captions as the model takes them. Raises UserError."""
    if not data.caption_column and conditioning != "none":
        raise UserError(
            f"data.caption_column is empty, and the model's conditioning is {conditioning}; name the column that has it"
        )
    if (data.captions == "class") != (conditioning == "class") and conditioning != "none":
        remedy = "class" if conditioning == "class" else "first"
        raise UserError(
            f"data.captions={data.captions}, and the model's conditioning is {conditioning}; set data.captions={remedy}"
        )


def indexed_here(data: DataConfig) -> Survey:
    """The data set's sources, each with its index in memory."""
    listed = list_sources(data)
    indices = [index_source(source, data) for source in listed.sources]
    sources = [
        replace(source, rows=index.table.num_rows, index=index.table)
        for source, index in zip(listed.sources, indices, strict=True)
    ]
    return surveyed(data, listed, sources, indices)


def list_sources(data: DataConfig) -> Survey:
    """Every source of the data set, by name, from a listing alone; its rows are unknown, except in a folder of images.

    Raises:
        UserError: nothing is there, it cannot be reached, or is of no format or of several.
    """
    listing, tally = list_files(data.uri), LeftOutCounts()
    if listing.is_file:
        files, name = listing.files, detect_format(listing.files, data)
    else:
        candidates = inventory.select_files(listing, data, tally)
        name = detect_format(candidates, data)
        files = own_files(candidates, formats()[name], listing, data, tally)
    for info in files.values():
        version(info)  # a file without one is refused before any is opened
    sources = formats()[name].sources(listing, files, data, tally)
    if not sources:
        raise _no_rows(data, len(files), name, tally.left_out())
    return Survey(sources=tuple(sources), left_out=tally.left_out(), files=len(files), format=name)


def check_first_rows(listed: Survey, sources: Sequence[Source], data: DataConfig) -> None:
    """Refuses what the first rows show, so that a mistake costs no worker.

    Args:
        listed: the data set.
        sources: those that are not indexed yet.
        data: how they are read.

    Raises:
        UserError: the first of them cannot be read or lacks a column, or there are few and none has rows.
    """
    for source in sources[:PEEKED]:
        findings = Findings()
        rows = list(islice(format_of(source, data).rows(source, data, findings), PEEKED_ROWS))
        if findings.lacking and len(listed.sources) == 1:
            raise UserError(findings.lacking)
        if rows:
            return
    if len(listed.sources) <= len(sources[:PEEKED]):
        raise _no_rows(data, listed.files, listed.format, listed.left_out)


def surveyed(
    data: DataConfig, listed: Survey, sources: Sequence[Source], indices: Sequence[SourceIndex | SourceFacts]
) -> Survey:
    """The survey of sources whose rows are known, with all that is left out of them.

    Raises:
        UserError: there are no rows, or no source has a column that the settings name.
    """
    lacking = [index.lacking for index in indices if index.lacking]
    if lacking and len(lacking) == len(indices):
        raise UserError(lacking[0])
    tally = LeftOutCounts()
    tally.extend(listed.left_out)
    for index in indices:
        tally.extend(index.left_out)
    if not any(source.rows for source in sources):
        raise _no_rows(data, listed.files, listed.format, tally.left_out())
    for column in dict.fromkeys(column for index in indices for column in index.unread):
        tally.add("column", "that no setting names", column)
    return replace(listed, sources=tuple(sources), left_out=tally.left_out())


def _no_rows(data: DataConfig, files: int, kind: str, left_out: Sequence[LeftOut]) -> UserError:
    described = inventory.describe_left_out(left_out)
    return UserError(
        f"data.uri={data.uri!r} has {files} {kind} files but no rows; point it at the data set"
        + (f" ({described})" if described else "")
    )


def require_unique_ids(sources: Iterable[Source], data: DataConfig) -> None:
    """That ids are unique over sources whose indices are in memory; ids made from source and row always are.

    Raises:
        UserError: naming some of the ids that occur twice, and where.
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
    """The refusal of ids that occur more than once.

    Args:
        data: the settings.
        repeated: some of the ids, each with the sources that have it.
    """
    examples = sorted(repeated)[:5]
    uris = dict.fromkeys(uri for name in examples for uri in repeated[name])
    where = ", ".join(list(uris)[:4]) + ", ..." * (len(uris) > 4)
    return UserError(
        f"data.id_column={data.id_column!r} is not unique: {', '.join(name[:80] for name in examples)} occur more than "
        f"once (in {where}); name a column of unique ids, or leave data.id_column empty to have them made"
    )
