"""Numbers for Prometheus, through `ray.util.metrics`: every node of a cluster serves what its processes record.

Ray serves each metric as `ray_` plus its name, and a counter with `_total` at the end. A tag may have few values only:
Prometheus keeps a series for every combination of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Record = Callable[..., None]
"""`record(name, value, **tags)`: adds to a counter, sets a gauge."""


@dataclass(frozen=True)
class Metric:
    """One metric. There are no histograms: Ray 2.60 counts each value as the middle of its bucket, so sums are wrong.

    Attributes:
        kind: counter or gauge.
        meaning: what is counted, with its unit.
        tags: their names.
    """

    kind: Literal["counter", "gauge"]
    meaning: str
    tags: tuple[str, ...]


def unrecorded(name: str, value: float, **tags: str) -> None:
    """A record that drops every value, for runs that are not on an existing cluster."""


def exported(metrics: Mapping[str, Metric], everywhere: Mapping[str, str]) -> Record:
    """A `Record` for the Ray cluster that this process has joined by its first call.

    Args:
        metrics: by name.
        everywhere: tags of every metric and their values.
    """

    @cache  # registered at its first value: before, this process may not have joined the cluster
    def registered(name: str) -> Callable[..., None]:
        return _registered(name, metrics[name], (*everywhere, *metrics[name].tags))

    return lambda name, value, **tags: registered(name)(value, {**everywhere, **tags})


def _registered(name: str, metric: Metric, tags: tuple[str, ...]) -> Callable[..., None]:
    from ray.util.metrics import Counter, Gauge

    if metric.kind == "counter":
        return Counter(name, metric.meaning, tags).inc
    return Gauge(name, metric.meaning, tags).set
