"""Features on storage and the passes over them: an audit's own workers, and the plain way over the same files."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.executor import Attempt
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.audit.gram import GramTask, GramWorker
from concept_trak.audit.score import ScoreWorker, score_tasks
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig
from concept_trak.store import codec
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Part
from concept_trak.store.queries import StoredQuery, write_query
from concept_trak.store.records import Record, commit_part, read_record
from concept_trak.store.store import Store

PART_ROWS = 4096  # 17 MB of float16 at k = 2048
FIRST, NAMES = Attempt(1, 0), count()


@dataclass(frozen=True)
class Bench:
    """A store with features of one method, and queries to be scored."""

    work: Work
    records: tuple[Record, ...]
    z: Tensor
    scorer: ScoreWorker

    def score(self) -> None:
        for item in score_tasks("m", self.records):
            self.scorer(item, FIRST)

    def gram(self) -> None:
        """Under a name of its own, for a Gram that stands is not written again."""
        GramWorker(self.work)(GramTask("m", f"sum-{next(NAMES)}", self.records), FIRST)

    def read(self) -> Iterator[Tensor]:
        """Every row group widened in one go, the next one read after that."""
        store = Store(self.work.config.store)
        for record in self.records:
            file = pq.ParquetFile(pa.BufferReader(store.read(FeatureSet(record.fingerprint).part(record.shard))))
            meta = file.schema_arrow.metadata
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["feature"], use_threads=False)["feature"]
                (unit,) = codec.feature_matrices(column, int(meta[b"feature.k"]), meta[b"feature.dtype"].decode())
                yield torch.from_dlpack(unit).float()

    def score_plainly(self) -> None:
        for phi in self.read():
            _ = phi @ self.z.T

    def gram_plainly(self) -> None:
        total = torch.zeros(self.z.shape[1], self.z.shape[1])
        for phi in self.read():
            total += phi.T @ phi


def write(folder: Path, n: int, k: int, queries: int, dtype: str) -> Bench:
    """n Gaussian features whose norms span six orders of magnitude, through the codec and the records."""
    store, z = Store(str(folder)), torch.randn(queries, k, generator=torch.Generator().manual_seed(0))
    for first in range(0, n, PART_ROWS):
        part = _part(first, min(PART_ROWS, n - first), k, dtype)
        commit_part(store, part, dtype, "binary", 0.0, 1, "here")
    for i, (solved, plain) in enumerate(z.view(-1, 2, k).numpy()):
        query = StoredQuery(
            concept=f"c{i}", method="m", phi=plain, solved=solved,
            residual=0.0, lam=1.0, spread_solved=1.0, spread_phi=1.0,
        )  # fmt: skip
        write_query(Audit(store, "bench"), query)
    return found(folder, queries, dtype)


def found(folder: Path, queries: int, dtype: str) -> Bench:
    """What was written there."""
    concepts = tuple(Concept(f"c{i}", prompt=f"a c{i}", without_prompt="a") for i in range(queries // 2))
    work = Work(
        AuditConfig(str(folder), "bench", methods={"m": METHODS["trak"]}, concepts=concepts), {"m": FeatureSet(dtype)}
    )
    store = Store(str(folder))
    features = FeatureSet(dtype)
    records = [read_record(store, features, Path(name).stem) for name in store.names(features.parts)]
    scorer = ScoreWorker(work)
    return Bench(work, tuple(records), scorer.queries["m"].z, scorer)


def _part(first: int, n: int, k: int, fp: str) -> Part:
    rng = np.random.default_rng(first)
    phi = rng.standard_normal((n, k), np.float32) * np.float32(10) ** rng.uniform(-3, 3, (n, 1)).astype(np.float32)
    ids = tuple(f"sample-{first + i:09d}" for i in range(n))
    return Part(fp, f"bench-{first:09d}", ids, np.ones(n, np.float32), phi, ())
