"""The counters of one stage of a run: items, samples, the rate, and the time left."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from concept_trak.audit.featurize import FeaturizeResult

ROUNDING = 1e-6
"""A whole sample may be reported in parts, whose floating-point sum is a little less than 1."""


@dataclass
class StageProgress:
    """Counters of one stage of this run: items done and failed, their samples, attempts beyond the first.

    Attributes:
        of, samples_of: the items and samples that the stage has.
        ended: the samples of the items that are done, failed ones included.
        computed: the samples of the items that are done and did not fail.
        running: the number of items that workers had in the executor's last report.
        reported: the samples of these items that their workers had finished then.
        start: when the stage began, on the clock of `time.monotonic`.
        began: seconds from `start` to when the first item began, after its worker was built; infinite before.
        seconds: from `start` to the last change.
    """

    of: int = 0
    samples_of: int = 0
    done: int = 0
    ended: int = 0
    computed: int = 0
    running: int = 0
    reported: float = 0.0
    retries: int = 0
    failed: int = 0
    rejected: int = 0
    seconds: float = 0.0
    start: float = field(default_factory=lambda: time.monotonic())
    began: float = math.inf

    def expect(self, items: Sequence[Any]) -> None:
        """Add items (each a `Task`) to the stage."""
        self.of += len(items)
        self.samples_of += sum(item.samples for item in items)

    def count(self, item: Any, result: object, *, failed: bool, attempts: int, seconds: float) -> None:
        """Count an item that is done.

        Args:
            item: the `Task`.
            result: what its worker returned.
            failed: whether it returned nothing, because the item failed.
            attempts: how many there were.
            seconds: the length of the last one.
        """
        self.done += 1
        self.retries += attempts - 1
        self.failed += failed
        if isinstance(result, FeaturizeResult):
            self.rejected += sum(record.rejected for record in result.records)
        self.ended += item.samples
        self.computed += 0 if failed else item.samples
        self.running = min(self.running, self.of - self.done)
        # How much of `reported` was this item's is not known; the load that follows has what the others have.
        self.reported = max(0.0, self.reported - item.samples)
        self.seconds = self._now()
        self._begin(self.seconds - seconds)

    def take(self, running: int, reported: float) -> None:
        """Take the executor's load: the running items, and how many of their samples are finished."""
        self.running = running
        if running:
            self._begin(self._now())
        if reported != self.reported:
            self.reported, self.seconds = reported, self._now()

    @property
    def samples(self) -> int:
        """The samples that are computed, those within running items included."""
        return self.computed + int(self.reported + ROUNDING)

    @property
    def rate(self) -> float:
        """Samples a second, since the first item began."""
        return (self.computed + self.reported) / self._working if self._working else 0.0

    @property
    def left(self) -> float:
        """Seconds left at the pace so far; 0 when nothing is left or nothing is known."""
        return self._working * (1 / self.share - 1) if self.share and self.done < self.of else 0.0

    @property
    def share(self) -> float:
        """The part of the stage that is done, 0 ... 1; by samples if it has some, otherwise by items."""
        if self.samples_of:
            return min(1.0, (self.ended + self.reported) / self.samples_of)
        return self.done / self.of if self.of else 1.0

    @property
    def _working(self) -> float:
        """Seconds from the beginning of the first item to the last change."""
        return max(0.0, self.seconds - self.began)

    def _now(self) -> float:
        return time.monotonic() - self.start

    def _begin(self, at: float) -> None:
        """An item has begun `at` seconds after the stage, or before: a load may come late."""
        self.began = min(self.began, max(0.0, at))

    def counters(self) -> dict[str, Any]:
        """The numbers for progress.json and metrics.json."""
        names = ("done", "of", "samples", "samples_of", "retries", "failed", "rejected", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "samples_per_second": self.rate,
            "seconds_left": self.left,
        }

    def __str__(self) -> str:
        running = f", {self.running} running" if self.running else ""
        samples = f", {self.samples} of {self.samples_of} samples" if self.samples_of and self.done < self.of else ""
        rate = f", {self.rate:.1f} samples/s" if self.samples else ""
        troubles = "".join(f", {n} {what}" for what in ("retries", "failed", "rejected") if (n := getattr(self, what)))
        left = f", {self.left:.0f} s left" if self.left else ""
        return f"{self.done}/{self.of}{running}{samples}{rate}{troubles}{left}"
