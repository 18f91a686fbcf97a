"""Numbers for Prometheus, through `ray.util.metrics`: every node of a cluster serves what its processes record.

A table of metrics goes in, one verb comes out. Ray serves each under `ray_` and its name, a counter with `_total`
behind that. Only what is few may be a tag: Prometheus keeps a series for every combination of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Record = Callable[..., None]
"""`record(name, value, **tags)`: adds to a counter, sets a gauge."""


@dataclass(frozen=True)
class Metric:
    """A row of the table: what kind of number, what it means with its unit, and the names of its tags.

    No histograms: Ray 2.60 counts each value as the middle of its bucket, so their sums are wrong.
    """

    kind: Literal["counter", "gauge"]
    meaning: str
    tags: tuple[str, ...]


def unrecorded(name: str, value: float, **tags: str) -> None:
    """Nobody scrapes this run: it is not on a standing cluster."""


def exported(metrics: Mapping[str, Metric], everywhere: Mapping[str, str]) -> Record:
    """Records on the Ray cluster that this process is on by then; `everywhere` are tags of every metric."""

    @cache  # made at the first record: before, this process may not have joined the cluster
    def made(name: str) -> Callable[..., None]:
        return _made(name, metrics[name], (*everywhere, *metrics[name].tags))

    return lambda name, value, **tags: made(name)(value, {**everywhere, **tags})


def _made(name: str, metric: Metric, tags: tuple[str, ...]) -> Callable[..., None]:
    from ray.util.metrics import Counter, Gauge

    if metric.kind == "counter":
        return Counter(name, metric.meaning, tags).inc
    return Gauge(name, metric.meaning, tags).set
