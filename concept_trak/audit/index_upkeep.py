"""Upkeep of the indices of data on storage: which of them audits need."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from concept_trak import UserError
from concept_trak.config import DataConfig, build
from concept_trak.data.index import index_settings
from concept_trak.store.gc import Garbage, Needed, existing, unknown_needs
from concept_trak.store.image_copies import copies_folder, image_copy
from concept_trak.store.manifest import Audit, read_plan, read_settings
from concept_trak.store.part import Damaged
from concept_trak.store.sources import SourceSet, listing_of, read_survey
from concept_trak.store.store import Store
from concept_trak.store.tables import read_columns

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
        self._surveyed, self._plans = dict[str, _Surveyed | None](), dict[str, str]()
        for name in sorted(names):
            if "/surveys/" in name:
                self._surveys.setdefault(name.partition("/surveys/")[0], []).append(name)
            elif "/plans/" in name:
                self._plans[name.rpartition("-")[0]] = name

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
            plan = read_plan(audit)
        except FileNotFoundError:
            return Needed(folders=frozenset([sources.folder]))
        except Damaged as error:
            raise unknown_needs(audit, str(error)) from error
        if sources.folder not in self._surveyed:
            self._surveyed[sources.folder] = _surveyed(self._store, self._surveys.get(sources.folder, ()))
        surveyed = self._surveyed[sources.folder]
        if surveyed is None:
            return Needed(folders=frozenset([sources.folder]))
        own = self._plans.get(sources.plan([row["shard"] for row in plan], "").removesuffix("-.json"), "")
        names, about = _planned_names(surveyed, plan, own)
        needed = Needed(frozenset((*_needed_files(sources, surveyed, about, names), own)) - {""})
        return Needed.union([needed, _needed_copies(audit, sources, surveyed, names)])


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
        listings: by listing, the survey and the names of its sources, where some are ranges of a folder of images.
    """

    newest: str
    current: tuple[str, ...]
    versions: dict[str, dict[str, set[str]]]
    surveys: dict[frozenset[tuple[str, str]], list[str]]
    ranges: dict[str, _Range]
    listings: dict[str, tuple[str, frozenset[str]]]


def _surveyed(store: Store, surveys: Sequence[str]) -> _Surveyed | None:
    """What the surveys have; None if there are none, or one is damaged or gone."""
    versions, by_sources, current = dict[str, dict[str, set[str]]](), dict[frozenset[tuple[str, str]], list[str]](), ()
    ranges, listings = dict[str, _Range](), dict[str, tuple[str, frozenset[str]]]()
    records_by_text = dict[str, dict[str, Any]]()  # most records are in every survey
    for survey in surveys:  # in the order of time, with which their names begin
        try:
            records = read_survey(store, survey, records_by_text)
            for name, r in records.items():
                versions.setdefault(r["uri"], {}).setdefault(r["version"], set()).add(name)
                ranges[name] = _Range(r["uri"], range(r["first_row"], r["first_row"] + r["rows"]))
            of_survey = frozenset((r["uri"], r["version"]) for r in records.values())
        except (Damaged, KeyError, FileNotFoundError):
            return None
        by_sources.setdefault(of_survey, []).append(survey)
        if any(uri.endswith("/") for uri, _ in of_survey):
            listings[listing_of(survey)] = survey, frozenset(records)
        current = tuple(records)
    if not surveys:
        return None
    return _Surveyed(
        newest=surveys[-1], current=current, versions=versions, surveys=by_sources, ranges=ranges, listings=listings
    )


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


def _needed_files(sources: SourceSet, surveyed: _Surveyed, about: Iterable[str], names: Iterable[str]) -> Iterator[str]:
    """The files about planned sources, by their names, and the surveys `about` them; the newest with its sources."""
    for survey in (surveyed.newest, *about):
        yield from (survey, sources.unique(listing_of(survey)), sources.heavy(listing_of(survey)))
    for name in (*surveyed.current, *names):
        yield from (sources.index(name), sources.record(name), sources.ids(name))


def _planned_names(
    surveyed: _Surveyed, plan: Sequence[Mapping[str, Any]], own: str
) -> tuple[frozenset[str], Sequence[str]]:
    """The names of the planned sources, and the surveys of exactly these.

    The shards of a folder of images have versions that no source has. `own` is the file that has the listing of such a
    plan in its name; without one, every range of a planned folder that a survey has is taken.
    """
    if own and listing_of(own.removesuffix(".json")) in surveyed.listings:
        survey, names = surveyed.listings[listing_of(own.removesuffix(".json"))]
        return names, [survey]
    planned, by_address = frozenset((row["source"], row["version"]) for row in plan), dict[str, set[str]]()
    for uri, version in planned:
        by_address.setdefault(uri, set()).add(version)
    names = set[str]()
    for uri, planned_versions in by_address.items():
        versions = surveyed.versions.get(uri, {})
        for version in planned_versions if planned_versions <= versions.keys() else versions:
            names |= versions[version]
    return frozenset(names), surveyed.surveys.get(planned, ())


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
