"""Upkeep of the indices of data on storage: which of them audits need, and whether any is damaged."""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import pyarrow as pa

from concept_trak import UserError
from concept_trak.audit.heavy_groups import read_heavy_groups, recount_groups
from concept_trak.audit.mapper import serial
from concept_trak.audit.unique_ids import IdSettings, IdWorker, id_tasks, read_proof
from concept_trak.config import DataConfig, build
from concept_trak.data.ids import encode_ids, id_digests
from concept_trak.data.index import index_settings
from concept_trak.store.gc import Garbage, Needed, existing, unknown_needs
from concept_trak.store.image_copies import copies_folder, image_copy, read_image_copy
from concept_trak.store.manifest import Audit, read_plan, read_settings
from concept_trak.store.part import Damaged
from concept_trak.store.sources import SOURCES, SourceSet, listing_of, read_source_records, read_survey, source_name
from concept_trak.store.store import Store
from concept_trak.store.tables import read_columns, read_parquet
from concept_trak.store.verify import ALTERED, READERS, SOUND, TRUNCATED, Finding

INDEX, COPY = "source index", "image copy"


class IndexNeeds:
    """Which indices audits need. Surveys are read once, and each audit is compared with all of them at once, so the
    cost grows with the sources of the surveys and of the plans, and not with their product.

    Args:
        store: where they are.
        names: all files under sources/.
    """

    def __init__(self, store: Store, names: Iterable[str]) -> None:
        self._store, self._surveys = store, dict[str, list[str]]()
        self._surveyed = dict[str, _Surveyed | None]()
        for name in sorted(names):
            if "/surveys/" in name:
                self._surveys.setdefault(name.partition("/surveys/")[0], []).append(name)

    def __call__(self, audit: Audit) -> Needed:
        """The indices of the sources that an audit has planned, and the newest survey with its sources.

        An audit without a plan has just begun, and may need all indices of its data. Where a survey is damaged, all are
        needed too.

        Raises:
            UserError: the audit's settings or its plan cannot be read, so its needs are unknown.
        """
        if (sources := source_set(audit)) is None:
            return Needed()
        try:
            planned = frozenset((row["source"], row["version"]) for row in read_plan(audit))
        except FileNotFoundError:
            return Needed(folders=frozenset([sources.folder]))
        except Damaged as error:
            raise unknown_needs(audit, str(error)) from error
        if sources.folder not in self._surveyed:
            self._surveyed[sources.folder] = _surveyed(self._store, self._surveys.get(sources.folder, ()))
        surveyed = self._surveyed[sources.folder]
        if surveyed is None:
            return Needed(folders=frozenset([sources.folder]))
        names = frozenset(_planned_names(surveyed, planned))
        needed = Needed(frozenset(_needed_files(sources, surveyed, planned, names)))
        return needed + _needed_copies(audit, sources, surveyed, names)


class _Range(NamedTuple):
    uri: str
    rows: range


@dataclass(frozen=True)
class _Surveyed:
    """The surveys of one data set.

    Attributes:
        newest: the newest survey.
        current: the names of its sources.
        versions: by address of a source and by version, the names of all sources that any survey has.
        surveys: the surveys by their sources, each source as (address, version).
        ranges: by the name of a source, its rows.
    """

    newest: str
    current: tuple[str, ...]
    versions: dict[str, dict[str, set[str]]]
    surveys: dict[frozenset[tuple[str, str]], list[str]]
    ranges: dict[str, _Range]


def _surveyed(store: Store, surveys: Sequence[str]) -> _Surveyed | None:
    """What the surveys have; None if there are none, or one is damaged or gone."""
    versions, by_sources, current = dict[str, dict[str, set[str]]](), dict[frozenset[tuple[str, str]], list[str]](), ()
    ranges = dict[str, _Range]()
    for survey in surveys:  # in the order of time, with which their names begin
        try:
            records = read_survey(store, survey)
            for name, r in records.items():
                versions.setdefault(r["uri"], {}).setdefault(r["version"], set()).add(name)
                ranges[name] = _Range(r["uri"], range(r["first_row"], r["first_row"] + r["rows"]))
            of_survey = frozenset((r["uri"], r["version"]) for r in records.values())
        except (Damaged, KeyError, FileNotFoundError):
            return None
        by_sources.setdefault(of_survey, []).append(survey)
        current = tuple(records)
    if not surveys:
        return None
    return _Surveyed(newest=surveys[-1], current=current, versions=versions, surveys=by_sources, ranges=ranges)


def source_set(audit: Audit) -> SourceSet | None:
    """The indices of the audit's data; None if no audit has begun in this folder.

    Raises:
        UserError: the audit's settings cannot be read, so its needs are unknown.
    """
    try:
        return SourceSet.of(index_settings(build(DataConfig, read_settings(audit)["data"])))
    except FileNotFoundError:
        return None
    except (Damaged, KeyError, UserError) as error:
        raise unknown_needs(audit, f"its settings of data cannot be read ({error})") from error


def _needed_files(
    sources: SourceSet, surveyed: _Surveyed, planned: frozenset[tuple[str, str]], names: frozenset[str]
) -> Iterator[str]:
    """The files about planned sources, and the newest survey with what is known of its listing and its sources."""
    for survey in (surveyed.newest, *surveyed.surveys.get(planned, ())):
        yield from (survey, sources.unique(listing_of(survey)), sources.heavy(listing_of(survey)))
    for name in (*surveyed.current, *names):
        yield from (sources.index(name), sources.record(name), sources.ids(name))


def _planned_names(surveyed: _Surveyed, planned: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The sources that are planned. The shards of a folder have versions that no source has; there, all are taken."""
    by_address = dict[str, set[str]]()
    for uri, version in planned:
        by_address.setdefault(uri, set()).add(version)
    for uri, planned_versions in by_address.items():
        versions = surveyed.versions.get(uri, {})
        for version in planned_versions if planned_versions <= versions.keys() else versions:
            yield from versions[version]


def _needed_copies(audit: Audit, sources: SourceSet, surveyed: _Surveyed, names: Iterable[str]) -> Needed:
    """The copies of the images that the audit shows; of all planned sources, by their names, before it has a top."""
    try:
        shown = read_columns(audit.store, audit.name("top.parquet"), ["source", "row"]).to_pylist()
    except (FileNotFoundError, OSError, ValueError, pa.ArrowException):
        return Needed(folders=frozenset(copies_folder(sources.index(name)) for name in names))
    rows_of = dict[str, set[int]]()
    for row in shown:
        rows_of.setdefault(row["source"], set()).add(row["row"])
    return Needed(
        frozenset(
            image_copy(sources.index(name), row)
            for name in names
            for row in rows_of.get(surveyed.ranges[name].uri, ())
            if row in surveyed.ranges[name].rows
        )
    )


def unneeded_indices(store: Store, names: Iterable[str], living: Needed, before: float) -> list[Garbage]:
    """The files among `names` that no audit needs and that are older than `before`.

    Args:
        store: the store.
        names: all files under sources/.
        living: the files and folders that audits need.
        before: a Unix time.
    """
    free = existing(store, [name for name in names if not living.keep(name)])
    return [Garbage(_kind(name), name, size) for name, size, age in free if age < before]


def _kind(name: str) -> str:
    return COPY if name.split("/")[2] == "images" else INDEX


def verify_indices(store: Store) -> Iterator[Finding]:
    """Compare every index with its record, and check every file derived from indices.

    A missing file is no finding, because it is made again when it is needed.
    """
    names = store.names(SOURCES)
    records, existing = [name for name in names if "/records/" in name], frozenset(names)
    with ThreadPoolExecutor(READERS) as readers:
        for findings in readers.map(lambda name: list(_verified(store, name)), records):
            yield from findings
        yield from filter(None, readers.map(lambda name: _derived(store, name, existing), names))


def _verified(store: Store, record_name: str) -> Iterator[Finding]:
    """The finding about a record, and the one about its index."""
    folder, _, file = record_name.partition("/records/")
    name = file.removesuffix(".json")
    index = f"{folder}/{name}.parquet"
    try:
        (record,) = read_source_records(store, [record_name])
        data = store.read(index)
        if source_name(record["uri"], record["version"], record["first_row"]) != name:
            raise Damaged("it belongs to another source")
    except FileNotFoundError:
        return
    except (Damaged, KeyError):
        yield Finding(record_name, ALTERED)
        return
    yield Finding(record_name, SOUND)
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        yield Finding(index, TRUNCATED if len(data) < record["bytes"] else ALTERED)
        return
    yield Finding(index, SOUND)
    digests = f"{folder}/ids/{name}.bin"
    with contextlib.suppress(FileNotFoundError):  # data without a column of ids have no such file
        expected = encode_ids(id_digests(read_parquet(data)["id"].to_pylist()))
        yield Finding(digests, SOUND if store.read(digests) == expected else ALTERED)


def _derived(store: Store, name: str, names: Collection[str]) -> Finding | None:
    """The finding about the copy of an image, or a file that is derived from the indices of a listing; None for any
    other file."""
    try:
        match name.split("/")[2]:
            case "surveys":
                read_survey(store, name)
                return Finding(name, SOUND)
            case "heavy":
                groups = read_heavy_groups(store, name)
                recounted = _recounted_groups(store, _indices_of(store, name, names))
                return Finding(name, SOUND if recounted is None or recounted.equals(groups) else ALTERED)
            case "images":
                read_image_copy(store, name)
                return Finding(name, SOUND)
            case "unique":
                survey = read_proof(store, name)
                repeated = _repeated_ids(store, survey, _indices_of(store, name, names), names)
                return Finding(name, ALTERED if repeated else SOUND)
            case _:
                return None
    except FileNotFoundError:  # removed since the listing
        return None
    except Damaged:
        return Finding(name, ALTERED)


def _recounted_groups(store: Store, indices: Sequence[str]) -> pa.Table | None:
    """The most frequent groups of these indices; None if there are none, or if one is damaged (another finding)."""
    with contextlib.suppress(Damaged, FileNotFoundError):
        return recount_groups(store, indices) if indices else None
    return None


def _repeated_ids(store: Store, survey: str, indices: Sequence[str], names: Collection[str]) -> bool:
    """Whether an id occurs twice in a survey; False unless its indices and the digests of all their ids are there."""
    sources = SourceSet(survey.split("/")[1])
    digests = {sources.ids(PurePath(index).stem) for index in indices}
    with contextlib.suppress(Damaged, FileNotFoundError):
        if digests and digests.issubset(names):
            results = serial("ids", IdWorker, IdSettings(store.uri, sources), id_tasks(store, survey))
            return any(result.repeated for _, result in results)
    return False


def _indices_of(store: Store, derived: str, names: Collection[str]) -> list[str]:
    """The indices of the listing that a file was made from; [] unless its survey and all of them are there."""
    sources, listing = SourceSet(derived.split("/")[1]), PurePath(derived).stem
    surveys = [n for n in names if n.startswith(f"{sources.surveys}/") and listing_of(n) == listing]
    with contextlib.suppress(Damaged, FileNotFoundError):
        indices = [sources.index(source) for source in read_survey(store, surveys[-1])] if surveys else []
        return indices if set(indices) <= set(names) else []
    return []
