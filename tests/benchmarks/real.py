"""Small audits on this machine's disk, whose workers cost nothing, so that the driver is what is measured.

Real: the data set (Parquet), survey, plan, parts, records, Grams, solve, scores, aggregates, tables, page, manifest.
Fake: features are random numbers and no gradients, a query is random, and pictures are of 8 by 8 pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.executor import ONE_CPU, Budgets, Outcome, Resources, Task, Watch, unwatched
from cluster.serial import Serial
from concept_trak.audit.featurize import FeaturizeResult, FeaturizeTask, FeaturizeWorker
from concept_trak.audit.index import IndexReader
from concept_trak.audit.mapper import Attempt
from concept_trak.audit.query_features import MethodQuery, QueryResult, QueryTask, QueryWorker
from concept_trak.audit.worker import StoreWorker
from concept_trak.data.image import to_png
from concept_trak.data.index import indexed_rows
from concept_trak.store import backends
from concept_trak.store.part import Part
from concept_trak.store.records import commit_part
from tests.benchmarks.simulated import LEDGER, K

PER_FILE = 100  # shards of one file


class RandomFeatures(StoreWorker):
    """In place of `FeaturizeWorker`: a part of random features, committed as always."""

    def __call__(self, task: FeaturizeTask, attempt: Attempt) -> FeaturizeResult:
        ids = tuple(row.id for row in indexed_rows(IndexReader(self.store)(task.shard)))
        draw = np.random.default_rng(int(task.shard.hash[:8], 16))
        phi = draw.normal(size=(len(ids), K)).astype(np.float32)
        records = []
        for method in task.methods:
            part = Part(
                self.work.features[method].fingerprint, task.shard.name, ids, np.ones(len(ids), np.float32), phi, ()
            )
            records.append(commit_part(self.store, part, "float16", "binary", 1.0, attempt.number, "here"))
        return FeaturizeResult(tuple(records))


class RandomQuery(StoreWorker):
    """In place of `QueryWorker`."""

    def __call__(self, task: QueryTask, attempt: Attempt) -> QueryResult:
        phi = np.random.default_rng(len(task.concept.name)).normal(size=K).astype(np.float32)
        picture = to_png(torch.zeros(3, 8, 8))
        return QueryResult(tuple(MethodQuery(m, task.concept.name, phi, (picture,)) for m in task.methods))


FAKES = {FeaturizeWorker: RandomFeatures, QueryWorker: RandomQuery}


@dataclass(frozen=True)
class AccountedSerial:
    """`Serial`, with the work of its workers accounted apart from the driver's."""

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        fake = FAKES.get(task.worker, task.worker)  # pyright: ignore[reportArgumentType, reportCallIssue]
        with LEDGER.within("workers"):
            worker = fake(task.config)

        def accounted(item: Any, attempt: Any) -> Any:
            with LEDGER.within("workers"):
                return worker(item, attempt)

        yield from Serial(Budgets()).map(_Built(accounted), items, resources, watch)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class _Built:
    """A task whose worker was built before."""

    work: Any
    config: None = None

    def worker(self, config: None) -> Any:
        return self.work


def write_data(folder: Path, shards: int, rows: int) -> None:
    """Parquet files of up to 100 shards, all with one small picture."""
    picture, total = to_png(torch.zeros(3, 8, 8)), shards * rows
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, total, PER_FILE * rows)):
        names = [
            f"a {('red', 'blue', 'green')[i % 3]} thing" for i in range(first, min(total, first + PER_FILE * rows))
        ]
        images = pa.array([{"bytes": picture, "path": None}] * len(names), pa.struct({"bytes": pa.binary(),
                                                                                     "path": pa.string()}))  # fmt: skip
        pq.write_table(pa.table({"image": images, "caption": names}), folder / f"train-{number:05d}.parquet")


def count_requests(monkeypatch_target: type[Any] = backends.LocalBackend) -> None:
    """Count what the stores of this process ask of the disk."""
    kinds = {"read": "read", "read_buffer": "read", "size": "look up", "stat": "look up", "delete": "delete",
             "names": "page of a listing", "children": "page of a listing", "versions": "page of a listing",
             "put_new": "write", "put": "write"}  # fmt: skip
    for name, kind in kinds.items():
        setattr(monkeypatch_target, name, _counting(getattr(monkeypatch_target, name), kind))


def _counting(method: Any, kind: str) -> Any:
    @wraps(method)
    def counted(*arguments: Any, **named: Any) -> Any:
        LEDGER.request(kind)
        return method(*arguments, **named)

    return counted
