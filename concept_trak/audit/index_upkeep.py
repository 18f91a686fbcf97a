"""Indices of data on storage: which audits need them, and whether their bytes are those that were written."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from concept_trak import UserError
from concept_trak.config import DataConfig, build
from concept_trak.data.index import index_settings
from concept_trak.store.gc import Garbage, Needed, existing, unknown_needs
from concept_trak.store.manifest import Audit, read_settings
from concept_trak.store.part import Damaged
from concept_trak.store.sources import SOURCES, SourceSet, read_source_records, read_survey
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, READERS, SOUND, TRUNCATED, Finding

INDEX = "source index"


def needed_indices(audit: Audit) -> Needed:
    """The folder of indices that an audit's data are read with.

    Raises:
        ValueError: its settings cannot be read, so that what it needs is unknown.
    """
    try:
        data = build(DataConfig, read_settings(audit)["data"])
    except FileNotFoundError:
        return Needed()  # a folder in which no audit was begun
    except (Damaged, KeyError, UserError) as error:
        raise unknown_needs(audit, f"its settings of data cannot be read ({error})") from error
    return Needed(folders=frozenset([SourceSet.of(index_settings(data)).folder]))


def unneeded_indices(store: Store, names: Iterable[str], living: Needed, before: float) -> list[Garbage]:
    """Those of `names` (all files under sources/) that no audit needs, older than `before` (unix time)."""
    free = existing(store, [name for name in names if not living.keep(name)])
    return [Garbage(INDEX, name, size) for name, size, age in free if age < before]


def verify_indices(store: Store) -> Iterator[Finding]:
    """Every index against its record, and the surveys; one that is missing is made when it is needed."""
    names = store.names(SOURCES)
    records = [name for name in names if "/records/" in name]
    with ThreadPoolExecutor(READERS) as readers:
        for findings in readers.map(lambda name: list(_verified(store, name)), records):
            yield from findings
        surveys = [name for name in names if "/surveys/" in name]
        yield from readers.map(lambda name: _survey(store, name), surveys)


def _verified(store: Store, record_name: str) -> Iterator[Finding]:
    """The finding about a record, and the one about its index."""
    folder, _, file = record_name.partition("/records/")
    index = f"{folder}/{file.removesuffix('.json')}.parquet"
    try:
        (record,) = read_source_records(store, [record_name])
        data = store.read(index)
    except FileNotFoundError:
        return
    except Damaged:
        yield Finding(record_name, ALTERED)
        return
    yield Finding(record_name, SOUND)
    if hashlib.sha256(data).hexdigest() == record["sha256"]:
        yield Finding(index, SOUND)
    else:
        yield Finding(index, TRUNCATED if len(data) < record["bytes"] else ALTERED)


def _survey(store: Store, name: str) -> Finding:
    try:
        read_survey(store, name)
    except Damaged:
        return Finding(name, ALTERED)
    return Finding(name, SOUND)
