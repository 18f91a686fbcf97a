"""Metrics for Prometheus, through `ray.util.metrics`: every node of a cluster serves the metrics of its processes.

Ray serves each metric as `ray_` plus its name, and a counter with `_total` at the end. A tag should have few values,
because Prometheus keeps a series for every combination of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Record = Callable[..., None]
"""`record(name, value, **tags)`: adds to a counter, sets a gauge."""


@dataclass(frozen=True)
class Metric:
    """One metric. Histograms are not used: Ray 2.60 counts each value as the middle of its bucket, so sums are wrong.

    Attributes:
        kind: counter or gauge.
        meaning: the quantity, with its unit.
        tags: the names of its tags.
    """

    kind: Literal["counter", "gauge"]
    meaning: str
    tags: tuple[str, ...]


def unrecorded(name: str, value: float, **tags: str) -> None:
    """A `Record` that drops every value, for runs that are not on an existing cluster."""


def exported(metrics: Mapping[str, Metric], everywhere: Mapping[str, str]) -> Record:
    """A `Record` for a Ray cluster. This process must have joined the cluster before the record is first called.

    Args:
        metrics: the metrics, by name.
        everywhere: tags that every metric gets, with their values.
    """

    @cache  # a metric is registered at its first value, because only then this process has joined the cluster
    def registered(name: str) -> Callable[..., None]:
        return _registered(name, metrics[name], (*everywhere, *metrics[name].tags))

    return lambda name, value, **tags: registered(name)(value, {**everywhere, **tags})


def _registered(name: str, metric: Metric, tags: tuple[str, ...]) -> Callable[..., None]:
    from ray.util.metrics import Counter, Gauge

    if metric.kind == "counter":
        return Counter(name, metric.meaning, tags).inc
    return Gauge(name, metric.meaning, tags).set
