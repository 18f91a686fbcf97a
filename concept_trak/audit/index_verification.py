"""Verify what is stored about data: indices against their records, and what is derived from indices against them."""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

import pyarrow as pa

from concept_trak.audit.heavy_groups import read_heavy_groups, recount_groups
from concept_trak.audit.mapper import serial
from concept_trak.audit.unique_ids import IdSettings, IdWorker, id_tasks, read_proof
from concept_trak.data.ids import encode_ids, id_digests
from concept_trak.store.image_copies import read_image_copy
from concept_trak.store.part import Damaged
from concept_trak.store.sources import (
    PLANNED,
    SOURCES,
    SourceSet,
    listing_of,
    read_source_records,
    read_survey,
    source_name,
)
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet
from concept_trak.store.verify import ALTERED, READERS, SOUND, TRUNCATED, Finding


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
        named = source_name(record["uri"], record["version"], record["first_row"])
        if record["version"] and named != name:  # records of folders had no version before
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
    """The finding about the copy of an image, a plan, or a file that is derived from the indices of a listing; None for
    any other file."""
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
            case "plans":
                return Finding(name, SOUND if store.read(name) == PLANNED else ALTERED)
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
