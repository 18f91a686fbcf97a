"""`rejects.parquet`: every sample without a feature, with the reason; one worker reads them from the parts' footers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from concept_trak.audit.mapper import Attempt, Stopped, Task
from concept_trak.audit.results import rejects_by_reason
from concept_trak.audit.worker import StoreWorker
from concept_trak.store.codec import read_footer
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit, write_table
from concept_trak.store.records import READERS, Record
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

FILE = "rejects.parquet"
REJECTED = "failures/rejects.parquet"
"""The table of a run that stopped because it had too many rejects."""
KINDS = {"method": "string", "sample_id": "string", "source": "string", "row": "int64", "reason": "string",
         "message": "string"}  # fmt: skip


@dataclass(frozen=True)
class RejectsTask(Task):
    """The parts with rejects, by method and in plan order, and the facts about the data, as JSON."""

    records: Mapping[str, tuple[Record, ...]]
    data: str

    @property
    def label(self) -> str:
        return "rejects"


@dataclass(frozen=True)
class RejectsResult:
    """The number of rows of the table."""

    rows: int


class RejectsWorker(StoreWorker):
    """Writes `rejects.parquet`. A worker does it because the table grows with the data."""

    def __call__(self, task: RejectsTask, attempt: Attempt) -> RejectsResult:
        return RejectsResult(write_rejects(self.store, self.audit, task))


def rejects_task(records: Mapping[str, Sequence[Record]], data: Mapping[str, Any]) -> RejectsTask:
    """The task for the records of every shard, by method."""
    rejected = {method: tuple(r for r in parts if r.rejected) for method, parts in records.items()}
    return RejectsTask(rejected, json.dumps(data))


def write_rejects(store: Store, audit: Audit, task: RejectsTask) -> int:
    """Write the table if it is absent; return its number of rows."""
    with ThreadPoolExecutor(READERS) as readers:
        pairs = [(method, record) for method, records in task.records.items() for record in records]
        tables = [*readers.map(lambda pair: from_rows(KINDS, list(reject_rows(store, *pair))), pairs)]
    table = pa.concat_tables(chain([from_rows(KINDS, [])], tables)).combine_chunks()
    write_table(audit, FILE, table.replace_schema_metadata({"data": task.data}))
    return table.num_rows


def reject_rows(store: Store, method: str, record: Record) -> Iterator[dict[str, Any]]:
    """The rows for one part, from its footer."""
    if record.rejected:
        footer = read_footer(store, FeatureSet(record.fingerprint).part(record.shard))
        yield from ({"method": method, **asdict(reject)} for reject in footer.rejects)


def too_many_rejects(audit: Audit, method: str, records: Sequence[Record], counted: str, most: float) -> Stopped:
    """The exception that stops a run over its budget of rejects; all rejects are written to the audit's failures.

    Args:
        audit: the audit.
        method: the method with too many rejects.
        records: its records so far.
        counted: the number of rejects, in words.
        most: the largest share of the samples that may be rejected, in [0, 1].
    """
    rows, name = [row for record in records for row in reject_rows(audit.store, method, record)], audit.name(REJECTED)
    audit.store.replace(name, to_parquet(from_rows(KINDS, rows)))
    return Stopped(
        f"{counted} ({reasons(records)}), over budget.rejects={most:g}. {_examples(rows)} All are in {name}. Mend the "
        "data and start a new audit, or raise the budget; the finished shards are kept.",
        3,
    )


def reasons(records: Iterable[Record]) -> str:
    """The number of rejects by reason, in words."""
    return ", ".join(f"{count} {reason}" for reason, count in rejects_by_reason(records).items())


def _examples(rejects: Iterable[Mapping[str, Any]]) -> str:
    """The first reject of each reason, in words."""
    first = dict[str, Mapping[str, Any]]()
    for reject in rejects:
        first.setdefault(reject["reason"], reject)
    return " ".join(f"{reason}: {r['sample_id']} ({r['message'].rstrip('.')})." for reason, r in sorted(first.items()))
