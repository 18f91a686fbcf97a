"""The dry run of an audit (`preflight=true`): run a few samples and a query, and estimate the whole audit."""

import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import cycle, islice

from concept_trak import UserError
from concept_trak.attribution.query_paths import QueryFeatures
from concept_trak.attribution.ranking import Entry
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.index import IndexReader
from concept_trak.audit.mapper import Attempt, Mapper, serial
from concept_trak.audit.peak_memory import MemoryByBatch, PeakMemory
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.plan import feature_bytes
from concept_trak.audit.prepare import Prepared, prepare
from concept_trak.audit.query_features import QueryResult, QueryTask, QueryWorker
from concept_trak.audit.resolve import require_apart, resolve
from concept_trak.audit.results import rejects_by_reason
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig, WorkerSettings
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.models.encode import batches_of_one_shape, reject_unknown_class
from concept_trak.store.records import Record
from concept_trak.store.store import Store

SAMPLES = 2
MOST = 16  # the most samples that are timed together; a query has as many by default
BATCHES_READ = 2  # a worker reads and decodes the next batch while it computes one
LONG = 20.0  # seconds that one measurement should not exceed; slow models are timed on fewer samples


@dataclass(frozen=True)
class DryRunFeaturizeResult:
    """The measured cost of samples: `seconds` for `timed` samples together, and the peak memory of a whole batch.

    `spent` is the seconds of the worker's whole call. It includes work that is done once, and `seconds` does not.
    """

    records: tuple[Record, ...]
    seconds: float
    timed: int
    spent: float
    batch: int
    peak: PeakMemory

    @property
    def rows(self) -> int:
        """How many of the first samples have a feature."""
        return sum(record.rows for record in self.records)


@dataclass(frozen=True)
class DryRunQueryResult:
    """The result of a query with one sample, and its measured cost: seconds a sample, seconds a picture, and the peak
    memory of all its samples and pictures."""

    result: QueryResult
    sample: float
    picture: float
    peak: PeakMemory

    def seconds(self, question: QueryTask) -> float:
        """Seconds of a query of the same methods with this number of samples and pictures."""
        count = question.concept.count
        return self.sample * count + self.picture * min(question.picture_count, count)


class DryRunFeaturizeWorker:
    """Featurizes a shard once, then times a batch of copies of its samples; the batch is as large as the audit's."""

    def __init__(self, work: Work) -> None:
        self.featurizer = FeaturizeWorker(work)

    def __call__(self, task: FeaturizeTask, attempt: Attempt) -> DryRunFeaturizeResult:
        start, worker, opened = time.monotonic(), self.featurizer, PeakMemory.so_far()
        rows = [worker.config.methods[m] for m in task.methods]
        records = worker(task, attempt).records
        read = samples(worker.index(task.shard), worker.config.data, worker.denoiser.resolution)
        checked = (reject_unknown_class(worker.denoiser, s) for s in read)
        usable = [s for s in checked if isinstance(s, Sample)]
        seconds, n, batch = 0.0, 1, min(worker.batch_size(attempt), worker.config.data.shard_rows)
        peak = opened.largest(PeakMemory.so_far())
        if usable:
            same, per_sample = cycle(batches_of_one_shape(usable)[0]), BATCHES_READ * usable[0].content.nbytes
            encoding, computing = MemoryByBatch(), MemoryByBatch()

            def work(n: int) -> None:
                encoded = encoding.measured(n, lambda: worker.encode(rows, list(islice(same, n))))
                computing.measured(n, lambda: worker.compute(rows, encoded))

            seconds, n = timed(work, batch)
            peak = peak.largest(encoding.at(batch, per_sample)).largest(computing.at(batch, per_sample))
        return DryRunFeaturizeResult(
            records=records,
            seconds=seconds,
            timed=n,
            spent=time.monotonic() - start,
            batch=batch,
            peak=peak,
        )


class DryRunQueryWorker:
    """Computes one sample of a query from end to end, then times a batch of them; it is as large as the audit's."""

    def __init__(self, work: Work) -> None:
        self.querier = QueryWorker(work)

    def __call__(self, query: QueryTask, attempt: Attempt) -> DryRunQueryResult:
        worker = self.querier
        size, concept = worker.batch_size(attempt), replace(query.concept, samples=1, phrasings=())
        result = worker(replace(query, concept=concept, picture_count=1), attempt)
        many = replace(query, concept=replace(concept, samples=min(size, query.concept.count)))
        batch = worker.batch(many, size)
        features, pictures, last = MemoryByBatch(), MemoryByBatch(), list[QueryFeatures]()

        def work(n: int) -> None:
            last[:] = [features.measured(n, lambda: worker.features(many, batch.rows(slice(0, n)), size))]

        def draw(n: int) -> None:
            pictures.measured(n, lambda: worker.pictures_and_fit(replace(many, picture_count=n), batch, *last))

        seconds, n = timed(work, len(batch.ids))
        most = max(1, min(query.picture_count, len(batch.ids)))
        drawing, count = timed(draw, min(most, n))
        peak = features.at(len(batch.ids)).largest(pictures.at(most))
        return DryRunQueryResult(result, seconds / n, drawing / count, peak)


def timed(work: Callable[[int], object], most: int) -> tuple[float, int]:
    """Time work on n samples together. n doubles, up to `most`, while the next time should stay below `LONG`.

    Returns:
        (seconds, n) of the last measurement.
    """
    n, most = 1, min(most, MOST)
    while True:
        start = time.monotonic()
        work(n)
        seconds = time.monotonic() - start
        if n == most or 2 * seconds > LONG:
            return seconds, n
        n = min(2 * n, most)


def few(shard: Shard, config: AuditConfig, resolution: int) -> Shard:
    """Some rows of a shard: from its first usable sample to the next usable one of the same shape.

    Raises:
        UserError: the shard has no sample that can be used; the message says why.
    """
    usable: list[Sample] = []
    reasons: list[str] = []
    for sample in samples(shard, config.data, resolution):
        if not isinstance(sample, Sample):
            reasons.append(f"{sample.reason}: {sample.message}")
        elif not usable or sample.shape == usable[0].shape:
            usable.append(sample)
        if len(usable) == SAMPLES:
            break
    if not usable:
        raise UserError(f"not one sample of {shard.source} can be used; the first is rejected for {reasons[0]}")
    return shard.rows_from(usable[0].row, usable[-1].row - usable[0].row + 1)


@contextmanager
def _scratch(config: AuditConfig) -> Iterator[AuditConfig]:
    require_apart(config.store, config.model, config.data.uri)
    Store(config.store).probe()
    folder = f"{config.store.rstrip('/')}/preflight-{uuid.uuid4().hex[:8]}"
    # Inversions that are read from the store would hide the time of computing them.
    own = replace(config, store=folder, audit="preflight", keep_states=False, aggregates=False)
    try:
        yield own
    finally:
        store = Store(own.store)
        for name in (name for folder in ("features", "audits", "states") for name in store.names(folder)):
            store.delete(name)
        if store.scheme == "file":  # where folders are more than names
            shutil.rmtree(own.store.removeprefix("file://"), ignore_errors=True)


def dry_run(
    config: AuditConfig,
    mapper: Mapper = serial,
    worker: WorkerSettings = WorkerSettings(gpus=1),
    workers: int = 0,
    price: float = 0.0,
) -> list[str]:
    """Load everything, run two samples and one query from end to end, and estimate the whole audit.

    It works in a temporary folder of the store and removes it afterwards. Only the index of the data stays, because the
    audit needs it too.

    Args:
        config: the audit's settings.
        mapper: where the work is done, on one worker.
        worker: what one worker may use of its machine.
        workers: number of workers of the audit; 0 leaves out the hours that they take together.
        price: of one worker for an hour, in any currency; 0 leaves out the cost.

    Returns:
        Lines of text about time, memory, storage and cost.

    Raises:
        UserError: an audit with these settings would be refused, or a number is not finite.
    """
    config = resolve(config)
    with _scratch(config) as scratch:
        indices = Store(config.store)
        p = prepare(scratch, worker, mapper, indices)
        shard = few(IndexReader(indices)(p.plan[0]), config, p.resolution)
        work = replace(p.work, config=replace(p.config, concepts=config.concepts[:1]))
        queries = tuple(q for q in p.queries if q.concept == config.concepts[0])
        small = AuditRun(replace(p, work=work, plan=[shard], queries=queries), mapper)
        return report(p, *_timed_stages(small), workers, price)


def _timed_stages(
    run: AuditRun,
) -> tuple[dict[str, DryRunFeaturizeResult], dict[tuple[str, ...], DryRunQueryResult], float]:
    """The measured costs of samples by method, and of a query by group of methods that share it; and the seconds that a
    worker takes to start."""
    p, begun = run.prepared, time.monotonic()
    tasks = [FeaturizeTask((method,), shard) for method in p.config.methods for shard in p.plan]
    results = {task.methods[0]: r for task, r in run.map("featurize", DryRunFeaturizeWorker, tasks)}
    starting = max(0.0, time.monotonic() - begun - sum(r.spent for r in results.values()))
    records = {method: list(results[method].records) for method in p.config.methods}
    for method, parts in records.items():
        if not sum(part.rows for part in parts):
            raise UserError(f"not one of the first samples has a feature for {method}: {rejects_by_reason(parts)}")
    grams = run.sum_grams(records)
    queries = {q.methods: r for q, r in run.map("query", DryRunQueryWorker, list(p.queries))}
    by_method = [query for r in queries.values() for query in r.result.queries]
    run.solve({(query.method, query.concept): query for query in by_method}, records, grams)
    _require_finite(run.score(records).entries())
    return results, queries, starting


def _require_finite(entries: Iterable[Entry]) -> None:
    for score, sample, _ in entries:
        if not math.isfinite(score):
            raise UserError(f"the score of {sample} is {score}; try model.precision=float32, or a larger damping")


def report(
    p: Prepared,
    featurized: dict[str, DryRunFeaturizeResult],
    queries: dict[tuple[str, ...], DryRunQueryResult],
    starting: float,
    workers: int,
    price: float,
) -> list[str]:
    """Lines about the dry run and the estimate for the whole audit, with the numbers behind each estimate."""
    config, results = p.config, list(featurized.values())
    peak = reduce(PeakMemory.largest, [r.peak for r in (*results, *queries.values())])
    each = sum(r.seconds / r.timed for r in results)
    querying = sum(queries[q.methods].seconds(q) for q in p.queries)
    hours = (each * p.samples + querying + starting * (workers or 1)) / 3600
    size, k = feature_bytes(config, p.parameters), config.projector.width(p.parameters)
    batch = "" if config.model.batch != 1 else " (not checked: model.batch=1)"
    spread = f"; {hours / workers:.3g} h on {workers} workers" if workers else ""
    cost = f" x {price:g} = {hours * price:.4g}" if price else "; cluster.price=<of one> shows the cost"
    return [
        f"preflight  {max(r.rows for r in results)} samples and 1 query end to end: finite, and predictions do "
        f"not depend on the batch{batch}",
        f"time       {each:.3g} s a sample, {querying:.3g} s for {len(p.queries)} queries, {starting:.3g} s until a "
        f"worker works: {hours:.3g} worker-hours for {p.samples} samples{spread}",
        *peak.lines(
            f"at a batch of {max(r.batch for r in results)}; up to {max(r.timed for r in results)} were measured"
        ),
        f"storage    {size * p.samples * len(config.methods) / 1e9:.3g} GB of features, {size} bytes a sample and "
        f"method; {4 * k * k / 1e9:.3g} GB a Gram",
        f"cost       {hours:.3g} worker-hours{cost}",
        *(f"data       {note}" for note in [p.reads_note] if note),
    ]
