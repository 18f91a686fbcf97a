"""The preflight's share of the work: a few samples and questions as workers do them, and what these needed."""

import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import torch

from concept_trak.audit.featurize import Featuring, Featurize, alike
from concept_trak.audit.pipeline import Run
from concept_trak.audit.plan import feature_bytes
from concept_trak.audit.prepare import Prepared
from concept_trak.audit.query_features import Answer, Query, Question
from concept_trak.audit.results import rejects_by_reason
from concept_trak.audit.worker import Attempt
from concept_trak.config import AuditConfig
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.store.records import Record
from concept_trak.store.store import Store

SAMPLES = 2
MOST = 16  # samples that are timed together at most; of a query that are as many as there are by default
LONG = 20.0  # seconds: what takes longer is timed on fewer samples


@dataclass(frozen=True)
class Rehearsed:
    """What samples took: seconds for `batch` of them together; the worker's peak bytes of memory, and on its GPU.

    `seconds` are of runs of their own, so that what happens once in a worker's life is not counted; it is in `spent`,
    the seconds of the whole rehearsal.
    """

    records: tuple[Record, ...]
    seconds: float
    batch: int
    spent: float
    host_bytes: int
    device_bytes: int

    @property
    def rows(self) -> int:
        """How many of the first samples have a feature."""
        return sum(record.rows for record in self.records)


@dataclass(frozen=True)
class Asked:
    """What a question took: its answer by one sample, seconds a sample of its feature, and seconds a picture."""

    answer: Answer
    sample: float
    picture: float

    def seconds(self, question: Question) -> float:
        """What a question of the same method will take."""
        count = question.concept.count
        return self.sample * count + self.picture * min(question.shown, count)


class Rehearse(Featurize):
    """Featurize, committed once; then copies of its samples, as many as will be computed together, timed."""

    def __call__(self, item: Featuring, attempt: Attempt) -> Rehearsed:  # type: ignore[override]
        start, rows = time.monotonic(), [self.config.methods[m] for m in item.methods]
        records = tuple(super().__call__(item, attempt))
        read = samples(item.shard, self.config.data, self.denoiser.resolution)
        known = (self._known(one, item.shard) for one in read)
        usable = [one for one in known if isinstance(one, Sample)]
        seconds, together = 0.0, min(self.batch_size(attempt), self.config.data.shard_rows)
        if usable:
            same = cycle(alike(usable)[0])
            seconds, together = timed(lambda n: self._features(rows, list(islice(same, n))), together)
        device = torch.cuda.max_memory_allocated() if self.denoiser.device.type == "cuda" else 0
        return Rehearsed(records, seconds, together, time.monotonic() - start, peak_bytes(), device)


class RehearseQuery(Query):
    """One sample of a question end to end; then as many as will be computed together, timed."""

    def __call__(self, question: Question, attempt: Attempt) -> Asked:  # type: ignore[override]
        size, concept = self.batch_size(attempt), replace(question.concept, samples=1, phrasings=())
        answer = super().__call__(replace(question, concept=concept, shown=1), attempt)
        many = replace(question, concept=replace(concept, samples=min(size, question.concept.count)))
        batch = self.batch(many, size)
        seconds, n = timed(lambda n: self.phi(many, batch.rows(slice(0, n)), size), len(batch.ids))
        most = max(1, min(question.shown, len(batch.ids)))
        drawing, shown = timed(lambda n: self.pictures(replace(many, shown=n), batch), most)
        return Asked(answer, seconds / n, drawing / shown)


def timed(work: Callable[[int], object], most: int) -> tuple[float, int]:
    """(seconds, n) of work on n samples together: `most` of them, or fewer if so many take about `LONG`."""
    n, most = 1, min(most, MOST)
    while True:
        start = time.monotonic()
        work(n)
        seconds = time.monotonic() - start
        if n == most or 2 * seconds > LONG:
            return seconds, n
        n = min(2 * n, most)


def peak_bytes() -> int:
    """The most memory that this process ever held, in bytes; getrusage says no less than what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def few(plan: Iterable[Shard], config: AuditConfig, resolution: int) -> Shard:
    """A shard from the first usable sample of the plan to the next one of one shape.

    Raises:
        ValueError: the first shard has no sample that can be used; the message says why.
    """
    shard = next(iter(plan))
    usable: list[Sample] = []
    reasons: list[str] = []
    for one in samples(shard, config.data, resolution):
        if not isinstance(one, Sample):
            reasons.append(f"{one.reason}: {one.message}")
        elif not usable or one.shape == usable[0].shape:
            usable.append(one)
        if len(usable) == SAMPLES:
            break
    if not usable:
        raise ValueError(f"not one sample of {shard.source} can be used; the first is rejected for {reasons[0]}")
    first, rows = usable[0].row, usable[-1].row - usable[0].row + 1
    begin = first - shard.first_row
    return replace(shard, first_row=first, rows=rows, places=shard.places[begin : begin + rows])


@contextmanager
def _scratch(config: AuditConfig) -> Iterator[AuditConfig]:
    Store(config.store).probe()
    folder = f"{config.store.rstrip('/')}/preflight-{uuid.uuid4().hex[:8]}"
    own = replace(
        config, store=folder, audit="preflight", keep_states=False
    )  # states that are kept would hide the time
    try:
        yield own
    finally:
        store = Store(own.store)
        for name in (name for folder in ("features", "audits", "states") for name in store.names(folder)):
            store.delete(name)
        if store.scheme == "file":  # where folders are more than names
            shutil.rmtree(own.store.removeprefix("file://"), ignore_errors=True)


def _rehearse(run: Run) -> tuple[dict[str, Rehearsed], dict[str, Asked], float]:
    """What samples and a question of each method took, and the seconds in which a worker starts."""
    p, begun = run.prepared, time.monotonic()
    items = [Featuring((method,), shard) for method in p.config.methods for shard in p.plan]
    done = {item.methods[0]: r for item, r in run.map("featurize", Rehearse, items)}
    starting = max(0.0, time.monotonic() - begun - sum(r.spent for r in done.values()))
    records = {method: list(done[method].records) for method in p.config.methods}
    for method, parts in records.items():
        if not sum(part.rows for part in parts):
            raise ValueError(f"not one of the first samples has a feature for {method}: {rejects_by_reason(parts)}")
    summed = run.sum_grams(records)
    asked = {q.method: r for q, r in run.map("query", RehearseQuery, list(p.questions))}
    run.solve({(m, one.answer.concept): one.answer for m, one in asked.items()}, records, summed)
    _require_finite(run.score(records).entries())
    return done, asked, starting


def _require_finite(entries: object) -> None:
    for score, sample, _ in entries:  # type: ignore[attr-defined]
        if not math.isfinite(score):
            raise ValueError(f"the score of {sample} is {score}; try model.precision=float32, or a larger damping")


def report(p: Prepared, rehearsed: dict[str, Rehearsed], asked: dict[str, Asked], starting: float) -> list[str]:
    """What ran, and what the whole run will take, each line with what it was reckoned from."""
    config, c = p.config, p.config.cluster
    each = sum(r.seconds / r.batch for r in rehearsed.values())
    asking = sum(asked[q.method].seconds(q) for q in p.questions)
    hours = (each * p.samples + asking + starting * (c.workers or 1)) / 3600
    host, device = (max(getattr(r, kind) for r in rehearsed.values()) for kind in ("host_bytes", "device_bytes"))
    size, k = feature_bytes(config, p.parameters), config.projector.width(p.parameters)
    batch = "" if config.model.batch != 1 else " (not checked: model.batch=1)"
    spread = f"; {hours / c.workers:.3g} h on {c.workers} workers" if c.workers else ""
    price = f" x {c.price:g} = {hours * c.price:.4g}" if c.price else "; cluster.price=<of one> shows the cost"
    rows, together = (max(getattr(r, n) for r in rehearsed.values()) for n in ("rows", "batch"))
    return [
        f"preflight  {rows} samples and 1 query end to end: finite, and samples do not see each other{batch}",
        f"time       {each:.3g} s a sample, {asking:.3g} s for {len(p.questions)} queries, {starting:.3g} s until a "
        f"worker works: {hours:.3g} worker-hours for {p.samples} samples{spread}",
        f"memory     {host / 1e9:.2f} GB in the worker, {device / 1e9:.2f} GB on its GPU, at a batch of {together}; a "
        "larger one takes more",
        f"storage    {size * p.samples * len(config.methods) / 1e9:.3g} GB of features, {size} bytes a sample and "
        f"method; {4 * k * k / 1e9:.3g} GB a Gram",
        f"cost       {hours:.3g} worker-hours{price}",
    ]
