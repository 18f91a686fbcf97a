"""`rejects.parquet`: every sample without a feature and why, gathered by one worker from the footers of the parts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import StoreWorker
from concept_trak.store.codec import read_footer
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit, write_table
from concept_trak.store.records import READERS, Record
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows

FILE = "rejects.parquet"
KINDS = {"method": "string", "sample_id": "string", "source": "string", "row": "int64", "reason": "string",
         "message": "string"}  # fmt: skip


@dataclass(frozen=True)
class RejectsTask(Task):
    """By method the parts that rejected samples, in plan order; and the facts about the data, as JSON."""

    records: Mapping[str, tuple[Record, ...]]
    data: str

    @property
    def label(self) -> str:
        return "rejects"


@dataclass(frozen=True)
class RejectsResult:
    """How many rows the table has."""

    rows: int


class RejectsWorker(StoreWorker):
    """All rejected samples of an audit, to `rejects.parquet`: as many rows as there are, so no work of the driver."""

    def __call__(self, task: RejectsTask, attempt: Attempt) -> RejectsResult:
        return RejectsResult(write_rejects(self.store, self.audit, task))


def rejects_task(records: Mapping[str, Sequence[Record]], data: Mapping[str, Any]) -> RejectsTask:
    """The task over the records of every shard, by method."""
    rejected = {method: tuple(r for r in parts if r.rejected) for method, parts in records.items()}
    return RejectsTask(rejected, json.dumps(data))


def write_rejects(store: Store, audit: Audit, task: RejectsTask) -> int:
    """Put the table if absent; returns the number of its rows."""
    with ThreadPoolExecutor(READERS) as readers:
        pairs = [(method, record) for method, records in task.records.items() for record in records]
        tables = [*readers.map(lambda pair: from_rows(KINDS, list(reject_rows(store, *pair))), pairs)]
    table = pa.concat_tables(chain([from_rows(KINDS, [])], tables)).combine_chunks()
    write_table(audit, FILE, table.replace_schema_metadata({"data": task.data}))
    return table.num_rows


def reject_rows(store: Store, method: str, record: Record) -> Iterator[dict[str, Any]]:
    """The rejected samples of one part, from its footer."""
    if record.rejected:
        footer = read_footer(store, FeatureSet(record.fingerprint).part(record.shard))
        yield from ({"method": method, **asdict(reject)} for reject in footer.rejects)
