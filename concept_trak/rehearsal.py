"""The preflight's share of the work: a few samples and questions as workers do them, and what these needed."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from concept_trak.config import AuditConfig
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.encoding import alike
from concept_trak.query import Answer, Query, Question
from concept_trak.stages import Attempt, Featuring, Featurize
from concept_trak.store.records import Record

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


def feature_bytes(config: AuditConfig, parameters: int) -> int:
    """Bytes that one sample's feature takes on storage, for one method."""
    itemsize = 4 if config.feature.encoding == "list" else np.dtype(config.feature.dtype).itemsize
    return config.projector.width(parameters) * itemsize
