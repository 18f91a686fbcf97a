"""The preflight's share of the work: a few samples as `stages.Featurize` does them, and what the worker needed."""

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from concept_trak.config import AuditConfig
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Shard
from concept_trak.encoding import alike
from concept_trak.stages import Attempt, Featuring, Featurize
from concept_trak.store.records import Record

SAMPLES = 2


@dataclass(frozen=True)
class Rehearsed:
    """What a few samples took: seconds for all of them; the worker's peak bytes of memory, and on its GPU (0 without).

    `seconds` are those of a second run, so that what happens once in a worker's life is not counted.
    """

    records: tuple[Record, ...]
    seconds: float
    host_bytes: int
    device_bytes: int


class Rehearse(Featurize):
    """Featurize, done twice: committed once, timed once."""

    def __call__(self, item: Featuring, attempt: Attempt) -> Rehearsed:  # type: ignore[override]
        records = super().__call__(item, attempt)
        start = time.monotonic()
        read = samples(item.shard, self.config.data, self.denoiser.resolution)
        usable = [one for one in read if isinstance(one, Sample)]
        for some in alike(usable):
            self._features([self.config.methods[m] for m in item.methods], some)
        seconds = time.monotonic() - start
        device = torch.cuda.max_memory_allocated() if self.denoiser.device.type == "cuda" else 0
        return Rehearsed(tuple(records), seconds, peak_bytes(), device)


def peak_bytes() -> int:
    """The most memory that this process ever held, in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
