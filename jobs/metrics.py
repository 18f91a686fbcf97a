"""The Prometheus metrics of an audit on a cluster, by stage; the dashboard uses the same table.

The driver records them, because only the driver has all the numbers. No metric has a tag for shards or samples, so an
audit has a few dozen time series.
"""

from collections import Counter
from dataclasses import dataclass, field

from cluster.executor import Load, Outcome
from cluster.metrics import Metric, Record, unrecorded
from concept_trak.audit.featurize import FeaturizeResult
from concept_trak.audit.results import rejects_by_reason

METRICS = {
    "concept_trak_items": Metric(
        "gauge",
        "Items of a stage by state: running, done or failed. For featurize and score an item is a shard.",
        ("stage", "state"),
    ),
    "concept_trak_queue_depth": Metric(
        "gauge", "Items of a stage that wait for their first or next attempt.", ("stage",)
    ),
    "concept_trak_workers": Metric(
        "gauge", "Workers: pending (no node has room), building, idle or working.", ("state",)
    ),
    "concept_trak_samples": Metric("counter", "Samples of the items that a stage has done.", ("stage",)),
    "concept_trak_rejects": Metric("counter", "Samples without a feature, by reason.", ("reason",)),
    "concept_trak_retries": Metric("counter", "Items put back after a failure, by its class.", ("stage", "failure")),
    "concept_trak_bytes": Metric("counter", "Bytes of the feature files that a stage has committed.", ("stage",)),
    "concept_trak_seconds": Metric("counter", "Seconds that workers took for the items that ended.", ("stage",)),
}
WORKERS = ("pending", "building", "idle", "working")


@dataclass
class Meter:
    """Records the driver's progress as metrics. The default record drops them."""

    record: Record = unrecorded
    _stage: str = ""
    _retries: Counter[str] = field(default_factory=Counter)

    def begin(self, stage: str) -> None:
        """Begin a stage; later calls record its numbers."""
        self._stage, self._retries = stage, Counter()

    def at(self, done: int, failed: int, load: Load) -> None:
        """Record the numbers of finished and failed items of the stage, and the executor's load."""
        for state, count in (("done", done), ("failed", failed), ("running", load.running)):
            self.record("concept_trak_items", count, stage=self._stage, state=state)
        self.record("concept_trak_queue_depth", load.queued, stage=self._stage)
        for state in WORKERS:
            self.record("concept_trak_workers", load.workers.get(state, 0), state=state)
        for failure, count in load.retries.items():
            self._add("concept_trak_retries", count - self._retries[failure], failure=failure)
        self._retries = Counter(load.retries)

    def ended(self, outcome: Outcome) -> None:
        """Count one item that has ended."""
        self._add("concept_trak_seconds", outcome.seconds)
        if outcome.error is not None:
            return
        self._add("concept_trak_samples", outcome.item.samples)
        committed = outcome.result.records if isinstance(outcome.result, FeaturizeResult) else ()
        self._add("concept_trak_bytes", sum(record.bytes for record in committed))
        for reason, count in rejects_by_reason(committed).items():
            self.record("concept_trak_rejects", count, reason=reason)

    def _add(self, name: str, amount: float, **tags: str) -> None:
        """Add to a counter of this stage. An amount of 0 is skipped, because Ray refuses it."""
        if amount:
            self.record(name, amount, stage=self._stage, **tags)
