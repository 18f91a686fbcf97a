"""The first stage of every verb over data: workers index each version of a source, and the driver plans from records.

The driver lists the sources and reads one survey, a file with the records of all sources of a listing. It reads other
records only for sources that are not in the survey.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from concept_trak import UserError
from concept_trak.attribution.denoiser import Conditioning
from concept_trak.audit.mapper import Attempt, Mapper, Task
from concept_trak.audit.unique_ids import require_ids_unique
from concept_trak.config import DataConfig
from concept_trak.data.ids import encode_ids, id_digests
from concept_trak.data.index import SourceFacts, count_groups, index_settings, index_source, with_sizes
from concept_trak.data.inventory import LeftOut, Survey
from concept_trak.data.shard import Layout, Shard, Source, StoredIndex, version_of_files
from concept_trak.data.survey import check_first_rows, list_sources, require_caption_setting, surveyed
from concept_trak.store.sources import (
    PLANNED,
    IndexFile,
    SourceSet,
    listing_of,
    read_source_records,
    read_survey,
    source_name,
    write_source_index,
    write_source_record,
    write_survey,
)
from concept_trak.store.store import Store

FOLDER_ROWS = 4096
"""Images of a folder that one task indexes."""


@dataclass(frozen=True)
class IndexSettings:
    """The settings of an index worker: the address of the store, and the settings of the data."""

    store: str
    data: DataConfig

    @property
    def sources(self) -> SourceSet:
        return SourceSet.of(index_settings(self.data))


@dataclass(frozen=True)
class IndexTask(Task):
    """A source to index, or a range of a folder of images."""

    source: Source

    @property
    def version(self) -> str:
        """That of the source, or of the files of a range."""
        return self.source.version or version_of_files(self.source.places)

    @property
    def name(self) -> str:
        return source_name(self.source.uri, self.version, self.source.first_row)

    @property
    def label(self) -> str:
        return self.name


@dataclass(frozen=True)
class IndexResult:
    """The facts about a source that a plan needs; or None, and the reason why the source cannot be used."""

    facts: SourceFacts | None
    refusal: str = ""


class IndexWorker:
    """Indexes a source: writes its rows to `<source>.parquet`, digests of its ids to `ids/`, and then its record."""

    def __init__(self, settings: IndexSettings) -> None:
        self.settings, self.store = settings, Store(settings.store)

    def __call__(self, task: IndexTask, attempt: Attempt) -> IndexResult:
        source, sources, data = task.source, self.settings.sources, self.settings.data
        try:
            index = index_source(source, data)
        except UserError as error:  # a problem of the data, not a failure of this task
            return IndexResult(None, str(error))
        size, digest = write_source_index(self.store, sources.index(task.name), index.table)
        if data.id_column:
            self.store.create(sources.ids(task.name), encode_ids(id_digests(index.table["id"].to_pylist())))
        facts = SourceFacts(
            uri=source.uri,
            version=task.version,
            first_row=source.first_row,
            rows=index.table.num_rows,
            vocabulary=count_groups(index.table).num_rows,
            bytes=size,
            sha256=digest,
            left_out=index.left_out,
            unread=index.unread,
            lacking=index.lacking,
            layout=index.layout,
        )
        write_source_record(self.store, sources.record(task.name), facts_as_json(facts))
        return IndexResult(facts)


def open_data(store: Store, data: DataConfig, conditioning: Conditioning, mapper: Mapper) -> Survey:
    """The data set's sources, all indexed and checked for a model with this conditioning.

    Args:
        store: the store of the indices.
        data: the settings of the data.
        conditioning: the kind of condition that the model takes.
        mapper: runs the indexing of sources without an index.

    Raises:
        UserError: there are no data, a source cannot be used, or ids occur twice.
    """
    require_caption_setting(data, conditioning)
    listed, settings = list_sources(data), IndexSettings(store.uri, data)
    tasks = [IndexTask(part) for source in listed.sources for part in indexed_parts(source)]
    names = [task.name for task in tasks]
    by_name, survey = _indexed(store, settings, listed, dict(zip(names, tasks, strict=True)), mapper)
    facts = [by_name[name] for name in names]
    result = surveyed(data, listed, _with_rows(listed.sources, settings.sources, names, facts), facts)
    if data.id_column:
        require_ids_unique(store, settings.sources, data, survey, mapper)
    return replace(result, listing=listing_of(survey), vocabulary=sum(f.vocabulary for f in facts))


def indexed_parts(source: Source) -> Iterator[Source]:
    """The source itself, or the ranges of a folder of images."""
    if source.version:
        yield source
        return
    for first in range(0, source.rows, FOLDER_ROWS):
        places = source.places[first : first + FOLDER_ROWS]
        yield replace(source, rows=len(places), places=places, first_row=first)


def _with_rows(
    sources: Sequence[Source], indices: SourceSet, names: Sequence[str], facts: Sequence[SourceFacts]
) -> list[Source]:
    """The sources with their number of rows and their indices."""
    stored: dict[str, list[StoredIndex]] = {}
    for name, f in zip(names, facts, strict=True):
        stored.setdefault(f.uri, []).append(StoredIndex(indices.index(name), f.first_row, f.rows))
    rows = {uri: sum(part.rows for part in parts) for uri, parts in stored.items()}
    layouts = {f.uri: f.layout for f in facts}
    return [replace(s, rows=rows[s.uri], stored=tuple(stored[s.uri]), layout=layouts[s.uri]) for s in sources]


def _indexed(
    store: Store, settings: IndexSettings, listed: Survey, tasks: Mapping[str, IndexTask], mapper: Mapper
) -> tuple[dict[str, SourceFacts], str]:
    """Index the sources without an index; return the facts of every source, and the name of the survey with them."""
    sources, existing = settings.sources, set(store.names(settings.sources.folder))
    listing = hashlib.sha256("\n".join(tasks).encode()).hexdigest()[:24]
    surveys = sorted(name for name in existing if name.startswith(f"{sources.surveys}/"))
    own = [name for name in surveys if name.endswith(f"-{listing}.parquet")]
    records = read_survey(store, (own or surveys)[-1]) if surveys else {}
    facts = {n: facts_of(r) for n, r in records.items() if n in tasks and sources.index(n) in existing}
    indexed = {sources.record(n): n for n in tasks if n not in facts and sources.index(n) in existing}
    single = [record for record in indexed if record in existing]
    facts |= {indexed[n]: facts_of(r) for n, r in zip(single, read_source_records(store, single), strict=True)}
    missing = [task for name, task in tasks.items() if name not in facts]
    if missing:
        check_first_rows(listed, [task.source for task in missing], settings.data)
    for task, result in mapper("index", IndexWorker, settings, missing) if missing else ():
        if result.facts is None:
            raise UserError(result.refusal)
        facts[task.name] = result.facts
    if own and not missing:
        return facts, own[-1]
    name = f"{sources.surveys}/{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{listing}.parquet"
    write_survey(store, name, {n: facts_as_json(facts[n]) for n in tasks})
    return facts, name


def note_listing(store: Store, data: DataConfig, listed: Survey, plan: Sequence[Shard]) -> None:
    """Write from which listing a plan was cut, where its shards have versions that no index has: in folders of images.

    `jobs.gc` then keeps the indices of the ranges that the plan has, and no others.
    """
    if any(not source.version for source in listed.sources):
        sources = SourceSet.of(index_settings(data))
        store.create(sources.plan([shard.name for shard in plan], listed.listing), PLANNED)


def facts_as_json(facts: SourceFacts) -> dict[str, Any]:
    """`SourceFacts` for JSON. `asdict` copies every value, which took half of the time over a grown data set."""
    return {**vars(facts), "left_out": [asdict(entry) for entry in facts.left_out]}


def facts_of(record: Mapping[str, Any]) -> SourceFacts:
    """A record as `SourceFacts`."""
    left_out = tuple(LeftOut(**{**entry, "names": tuple(entry["names"])}) for entry in record["left_out"])
    layout = Layout(*record.get("layout", ()))
    return SourceFacts(**{**record, "left_out": left_out, "unread": tuple(record["unread"]), "layout": layout})


class IndexReader:
    """Reads the index rows of shards; keeps the last file and row group, because consecutive shards share them."""

    def __init__(self, store: Store) -> None:
        self._store, self._files = store, dict[str, IndexFile]()

    def __call__(self, shard: Shard) -> Shard:
        """The shard with its rows of the index."""
        if shard.index is not None:
            return shard
        self._files = {s.name: self._files.get(s.name) or IndexFile(self._store, s.name) for s in shard.stored}
        tables = [self._rows(shard, s) for s in shard.stored]
        return replace(shard, index=pa.concat_tables(tables))

    def _rows(self, shard: Shard, stored: StoredIndex) -> pa.Table:
        first = max(shard.first_row, stored.first_row)
        end = min(shard.first_row + shard.rows, stored.first_row + stored.rows)
        return with_sizes(self._files[stored.name].rows(first - stored.first_row, end - first))
