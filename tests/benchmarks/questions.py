"""Questions to many samples: `python -m tests.benchmarks.questions [samples=200000] [dtype=int8]
[keep=memory|disk|store] [askers=1,8,64] [rounds=3] [threads=2] [out=folder] [data=folder]`.

Made-up features of k = 4096 are written with the codec, checked once and kept. For 1 and for 16 questions (each with
damped, plain and four groups' queries, so six columns) the exact best and worst 100 are compared with a plain way over
the same bytes: widen some rows in one buffer, one product, no top, no histogram. Both in this process, interleaved,
medians. The plain way from the store reads the files whole, unchecked, one after another. Then askers, each of which
asks three questions and waits for each, through the queue of the server; their queries are made up.

`data` names a folder that is kept; without it everything is removed at the end.
"""

import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from concept_trak.attribution.ranking import WIDE_BYTES
from concept_trak.audit.kept_features import KeepingBudget, KeptFeatures, memory_of
from concept_trak.audit.results import Tally
from concept_trak.audit.score import ScoreResult
from concept_trak.audit.shared_pass import scan
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.config import AuditConfig, WorkerSettings
from concept_trak.store import codec
from concept_trak.store.identity import FeatureSet, encode_json
from concept_trak.store.part import Block, Part
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record, read_record
from concept_trak.store.store import Store
from serving.answering import Answering
from serving.question import Question
from tests.benchmarks.on_storage import Bench
from tests.benchmarks.passes import _status, interleaved, table

K, TOP, GROUPS, TURNS = 4096, 100, 4, 3
PART_BYTES = 64 << 20
Row = dict[str, Any]


class Features:
    """The features of one method in a folder, and the source that a server reads them from."""

    def __init__(self, folder: Path, n: int, dtype: str, keep: str) -> None:
        store, features = Store(str(folder)), FeatureSet(dtype)
        _write(store, n, dtype)
        names = sorted(Path(name).stem for name in store.names(features.parts))
        self.records = [read_record(store, features, name) for name in names]
        self.work = Work(
            AuditConfig(str(folder), "bench"), {"m": features}, WorkerSettings(cpus=float(torch.get_num_threads()))
        )
        size = sum(record.bytes + 90 * record.rows for record in self.records)
        self.budget = KeepingBudget(**({} if keep == "store" else {keep: size}), folder=str(folder))
        self.kept = KeptFeatures(StoreWorker(self.work), self.budget, sum(record.bytes for record in self.records))

    def rank(self, queries: Sequence[StoredQuery]) -> Tally:
        tally = Tally(TOP)
        for result in self.scan(queries):
            tally.add(result)
        return tally

    def scan(self, queries: Sequence[StoredQuery]) -> Iterator[ScoreResult]:
        return scan(self.kept, self.records, "m", queries, TOP)

    def rank_plainly(self, queries: Sequence[StoredQuery]) -> None:
        """Widen and multiply what is kept, in one product of all columns.

        Queries times samples: the other way round the product of six columns takes three times as long.
        """
        columns = [np.vstack([q.solved, q.phi, *([] if q.groups is None else q.groups)]) for q in queries]
        z = torch.from_numpy(np.concatenate(columns))
        if not self.budget.memory + self.budget.disk:
            for phi in Bench(self.work, tuple(self.records), z, None).read():  # pyright: ignore[reportArgumentType]
                _ = z @ phi.T
            return
        rows = WIDE_BYTES // (4 * K)
        buffer = torch.empty(rows, K)
        for unit in self._units():
            out = torch.empty(len(z), len(unit))
            for first in range(0, len(unit), rows):
                block = unit[first : first + rows]
                torch.mm(z, buffer[: len(block)].copy_(block).T, out=out[:, first : first + rows])

    def _units(self) -> Iterator[Tensor]:
        kept = self.kept
        for blocks in (*kept._in_memory.values(), *kept._on_disk.values()):
            yield from (torch.from_dlpack(block.unit) for block in blocks)


def _write(store: Store, n: int, dtype: str) -> None:
    """Rows of uniform numbers whose norms differ, unless they stand there: quantising would take most of the time."""
    features = FeatureSet(dtype)
    rows = PART_BYTES // (K * np.dtype(dtype).itemsize)
    for first in range(0, n, rows):
        shard, count = f"bench-{first:09d}", min(rows, n - first)
        if store.size(features.record(shard)) is not None:
            continue
        rng = np.random.default_rng(first)
        unit = np.frombuffer(rng.bytes(count * K), np.int8).reshape(count, K).clip(-127, None)
        scale = rng.lognormal(-9, 0.3, count).astype(np.float32)
        ids = [f"sample-{first + i:09d}" for i in range(count)]
        rows_ = Block(ids, np.ones(count, np.float32), scale, unit if dtype == "int8" else unit.astype(dtype) / 127)
        part = Part(dtype, shard, tuple(ids), rows_.weight, np.empty((count, 0), np.float32), ())
        data = codec._parquet(codec._table(part, rows_, "binary"), (32 << 20) // (K * rows_.unit.itemsize), "binary")
        store.create(features.part(shard), data)
        record = Record(
            shard=shard, rows=count, rejected=0, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(),
            sum_squares=codec.decode_footer(data).sum_squares, seconds=0.0, attempt=1, host="here",
            rejects_by_reason={}, fingerprint=dtype,
        )  # fmt: skip
        store.create(features.record(shard), encode_json(asdict(record)))


def queries(count: int, seed: int = 0) -> list[StoredQuery]:
    rng = np.random.default_rng(seed)
    return [
        StoredQuery(
            concept=str(i), method="m", phi=rng.standard_normal(K, np.float32),
            solved=rng.standard_normal(K, np.float32), residual=0.0, lam=1.0, spread_solved=64.0, spread_phi=64.0,
            groups=rng.standard_normal((GROUPS, K), np.float32),
        )
        for i in range(count)
    ]  # fmt: skip


def compared(features: Features, rounds: int, counts: Sequence[int] = (1, 16)) -> list[Row]:
    """Seconds of a pass, ours and plainly, and the ratio of wall and of CPU time."""
    rows = []
    for count in counts:
        own = queries(count)
        ways = {"ours": lambda own=own: features.rank(own), "plain": lambda own=own: features.rank_plainly(own)}
        ours, plain = interleaved(ways, rounds).values()
        rows.append(
            {
                **{"questions": count, "ours_s": ours.wall, "plain_s": plain.wall, "of_plain": plain.wall / ours.wall},
                **{"ours_cpu_s": ours.cpu, "plain_cpu_s": plain.cpu, "of_plain_cpu": plain.cpu / ours.cpu},
            }
        )
    return rows


class MadeUp:
    """As `Questions`, with queries that are made up, so that only the pass is timed."""

    def __init__(self, features: Features) -> None:
        self.features, self.config, self.batches = features, SimpleNamespace(audit="bench", methods={"m": None}), []

    def configuration(self, concepts: Sequence[Any], *_: Any, **__: Any) -> Any:
        return concepts[0]

    def solve_question(self, config: Any, progress: Any) -> int:
        return config.seed

    def rank(self, questions: Sequence[int], progress: Any) -> list[None]:
        own = [queries(1, seed)[0] for seed in questions]
        self.batches.append(len(own))
        numbered = [StoredQuery(**{**vars(query), "concept": str(i)}) for i, query in enumerate(own)]
        self.features.rank(numbered)
        return [None] * len(own)

    def answer(self, question: int, tally: None, progress: Any) -> None:
        return None


class NothingKept:
    """As `QuestionArchive`, in memory."""

    settings, pictures = "", ""

    def __init__(self) -> None:
        self.answered = set[str]()

    def require_pictures(self, question: Question) -> None: ...

    def keep_question(self, question: Question) -> None: ...

    def is_answered(self, key: str) -> bool:
        return key in self.answered

    def keep_answer(self, key: str, answer: None) -> None:
        self.answered.add(key)


def latencies(features: Features, askers: int) -> Row:
    """Seconds from a question to its answer, when so many ask at the same time."""
    own, archive, taken = MadeUp(features), NothingKept(), list[float]()
    answering = Answering(own, archive, 100)  # pyright: ignore[reportArgumentType]

    def ask(asker: int) -> None:
        for turn in range(TURNS):
            start = time.perf_counter()
            key = answering.submit(Question(prompt=f"{asker} {turn}", seed=asker * TURNS + turn, top=TOP))
            while not archive.is_answered(key):
                time.sleep(0.01)
            taken.append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(asker,)) for asker in range(askers)]
    answering.start()
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    answering.stop()
    p50, p95 = np.percentile(taken, [50, 95])
    return {"askers": askers, "questions": len(taken), "passes": len(own.batches), "p50_s": float(p50),
            "p95_s": float(p95), "questions_per_s": len(taken) / seconds,
            "cpu_s_per_question": cpu / len(taken)}  # fmt: skip


def memory(features: Features) -> Row:
    """MB: what is kept, and the peak beyond what stood before, in the first pass and in one of 16 questions."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start, cpu = time.perf_counter(), time.process_time()
    features.rank(queries(1))
    first, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = _status("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    features.rank(queries(16))
    kept = sum(memory_of(block) for blocks in features.kept._in_memory.values() for block in blocks)
    return {"first_pass_s": first, "first_cpu_s": cpu, "budget_mb": features.budget.memory / 1e6, "kept_mb": kept / 1e6,
            "first_peak_mb": peak, "peak_of_16_mb": _status("VmHWM") - before}  # fmt: skip


def main(
    samples: str = "200000", dtype: str = "int8", keep: str = "memory", askers: str = "1,8,64", out: str = "",
    data: str = "",
    rounds: str = "3", threads: str = str(os.cpu_count()),
) -> None:  # fmt: skip
    torch.set_num_threads(int(threads))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        features = Features(Path(data or folder), int(samples), dtype, keep)
        conditions = {"samples": int(samples), "k": K, "dtype": dtype, "keep": keep, "threads": int(threads)}
        result: Row = {**conditions, "load": os.getloadavg()[0]}
        print(json.dumps(result), flush=True)
        for name, rows in (
            ("memory", lambda: [memory(features)]),
            ("passes", lambda: compared(features, int(rounds))),
            ("askers", lambda: [latencies(features, int(count)) for count in askers.split(",") if count]),
        ):
            result[name] = rows()
            if result[name]:
                print(f"\n{table(result[name])}", flush=True)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / f"questions-{dtype}-{keep}-{samples}.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
