"""That no id occurs twice in a listing: workers compare digests by hash buckets, and a file records the result."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from concept_trak.audit.mapper import Attempt, Mapper, Task
from concept_trak.config import DataConfig
from concept_trak.data.ids import CUTS, HEADER_BYTES, bucket_bytes, id_digests, repeated
from concept_trak.data.survey import repeated_ids
from concept_trak.store.part import Damaged
from concept_trak.store.sources import READERS, REMEDY, SourceSet, listing_of, read_source_index, read_survey
from concept_trak.store.store import Store

BUCKET_IDS = 1 << 24
"""Ids that are compared together, 128 MB of digests."""
EXAMPLES = 5


@dataclass(frozen=True)
class IdSettings:
    """What a worker over ids is built with: the store, and the indices."""

    store: str
    sources: SourceSet


@dataclass(frozen=True)
class IdTask(Task):
    """Bucket number `bucket` of the ids of all sources of a survey."""

    survey: str
    bucket: int
    buckets: int

    @property
    def label(self) -> str:
        return f"{self.bucket:03d}"


@dataclass(frozen=True)
class IdResult:
    """At most `EXAMPLES` ids that occur more than once, each with the sources that have it."""

    repeated: dict[str, list[str]]


class IdWorker:
    """Compares the digests of one bucket over all sources, and the ids themselves if two digests are equal."""

    def __init__(self, settings: IdSettings) -> None:
        self.settings, self.store = settings, Store(settings.store)

    def __call__(self, task: IdTask, attempt: Attempt) -> IdResult:
        records = read_survey(self.store, task.survey)
        with ThreadPoolExecutor(READERS) as readers:
            digests = list(readers.map(lambda name: self._bucket(name, task), records))
            equal = repeated(np.concatenate(digests)) if digests else np.zeros(0, np.uint64)
            holding = [n for n, own in zip(records, digests, strict=True) if len(equal) and np.isin(own, equal).any()]
            where: dict[str, list[str]] = {}
            for name, ids in zip(holding, readers.map(lambda n: self._ids(n, equal), holding), strict=True):
                for i in ids:
                    where.setdefault(i, []).append(records[name]["uri"])
        twice = sorted(i for i, uris in where.items() if len(uris) > 1)
        return IdResult({i: where[i] for i in twice[:EXAMPLES]})

    def _bucket(self, name: str, task: IdTask) -> np.ndarray:
        file = self.settings.sources.ids(name)
        if task.buckets == 1:
            return np.frombuffer(self.store.read(file)[HEADER_BYTES:], "<u8")
        start, end = bucket_bytes(self.store.read(file, 0, HEADER_BYTES), task.bucket, task.buckets)
        return np.frombuffer(self.store.read(file, start, end) if start < end else b"", "<u8")

    def _ids(self, name: str, digests: np.ndarray) -> list[str]:
        """The ids of a source with one of these digests."""
        ids = read_source_index(self.store, self.settings.sources.index(name), ["id"])["id"].to_pylist()
        return [ids[i] for i in np.flatnonzero(np.isin(id_digests(ids), digests))]


def require_ids_unique(store: Store, sources: SourceSet, data: DataConfig, survey: str, mapper: Mapper) -> None:
    """Require that no id occurs twice in a survey; checked once for a listing.

    Raises:
        UserError: some ids occur twice; the message names them and their sources.
    """
    proof = sources.unique(listing_of(survey))
    if store.size(proof) is not None:
        return
    results = mapper("ids", IdWorker, IdSettings(store.uri, sources), id_tasks(store, survey))
    twice = [pair for _, result in results for pair in result.repeated.items()]
    if twice:
        raise repeated_ids(data, dict(sorted(twice)[:EXAMPLES]))
    store.create(proof, json.dumps({"survey": survey}).encode())


def id_tasks(store: Store, survey: str) -> list[IdTask]:
    """The buckets that the ids of a survey are compared in."""
    rows = sum(record["rows"] for record in read_survey(store, survey).values())
    buckets = min(CUTS, 1 << max(0, -(-rows // BUCKET_IDS) - 1).bit_length())
    return [IdTask(survey, bucket, buckets) for bucket in range(buckets)]


def read_proof(store: Store, name: str) -> str:
    """The survey that a file under `unique/` is about: no id of it occurs twice. Raises Damaged, naming the file."""
    try:
        survey = json.loads(store.read(name))["survey"]
        if listing_of(survey) != PurePath(name).stem:
            raise ValueError("it names another listing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}. {REMEDY}") from error
    return survey
