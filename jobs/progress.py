"""The progress of a run: a bar on a terminal, otherwise a line for each interval, and always `progress.json`."""

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tqdm import tqdm

from cluster.executor import Load, Outcome
from concept_trak.audit.featurize import FeaturizeResult
from concept_trak.store.manifest import Audit, write_progress
from jobs.metrics import Meter

LOG = logging.getLogger(__name__)


@dataclass
class Stage:
    """Counters of one stage of this run: items done and failed, their samples, attempts beyond the first.

    `running` is the number of items that workers had in the executor's last report.
    """

    of: int
    done: int = 0
    running: int = 0
    samples: int = 0
    retries: int = 0
    failed: int = 0
    rejected: int = 0
    seconds: float = 0.0
    start: float = field(default_factory=time.monotonic)

    def count(self, outcome: Outcome) -> None:
        self.done += 1
        self.retries += outcome.attempts - 1
        self.failed += outcome.error is not None
        if isinstance(outcome.result, FeaturizeResult):
            self.rejected += sum(record.rejected for record in outcome.result.records)
        self.samples += outcome.item.samples if outcome.error is None else 0
        self.running = min(self.running, self.of - self.done)
        self.seconds = time.monotonic() - self.start

    @property
    def rate(self) -> float:
        """Samples a second, since the stage began."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def left(self) -> float:
        """Seconds left at the pace so far; 0 when nothing is left or nothing is known."""
        return self.seconds / self.done * (self.of - self.done) if self.done else 0.0

    def counters(self) -> dict[str, float]:
        names = ("done", "of", "samples", "retries", "failed", "rejected", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "samples_per_second": self.rate,
            "seconds_left": self.left,
        }

    def __str__(self) -> str:
        rate = f", {self.rate:.1f} samples/s" if self.samples else ""
        troubles = "".join(f", {n} {what}" for what in ("retries", "failed", "rejected") if (n := getattr(self, what)))
        left = f", {self.left:.0f} s left" if self.left else ""
        return f"{self.done}/{self.of}{rate}{troubles}{left}"


@dataclass
class Progress:
    """Progress of one audit, stage by stage. `interval` is the least number of seconds between two reports.

    While the driver waits for workers of a cluster, it reports about once an interval, so that a reader notices a dead
    driver.
    """

    audit: Audit | None
    interval: float
    meter: Meter = field(default_factory=Meter)
    stages: dict[str, Stage] = field(default_factory=dict)
    now: str = ""
    noted: float = 0.0

    def line(self, text: str) -> None:
        print(text, flush=True)

    def track(self, name: str, outcomes: Iterator[Outcome], of: int) -> Iterator[Outcome]:
        """Pass outcomes on and count them. A stage may come again, as Grams are summed by level, and adds up."""
        stage = self.stages.setdefault(name, Stage(0))
        stage.of += of
        self.now = name
        self.meter.begin(name)
        self._note()
        with tqdm(total=of, desc=f"{name:<10}", unit="item", disable=not sys.stderr.isatty()) as bar:
            for outcome in outcomes:
                stage.count(outcome)
                self.meter.ended(outcome)
                bar.set_postfix_str(f"{stage.rate:.1f} samples/s" if stage.samples else "", refresh=False)
                bar.update()
                if stage.done == stage.of or self._due:
                    self._note()
                    if bar.disable:
                        self.line(f"{name:<10} {stage}")
                yield outcome
        self.meter.at(stage.done - stage.failed, stage.failed, Load(running=0))

    def watch(self, load: Load) -> None:
        """Take the executor's load in the present stage."""
        stage = self.stages[self.now]
        first = stage.running == stage.done == 0 < load.running
        stage.running = load.running
        self.meter.at(stage.done - stage.failed, stage.failed, load)
        if first or self._due:  # the first at once, because the executor may not report again until that item has ended
            self._note()

    @property
    def _due(self) -> bool:
        return time.monotonic() - self.noted >= self.interval

    def counters(self) -> dict[str, dict[str, float]]:
        """The counts of each stage of this run, by its name."""
        return {name: stage.counters() for name, stage in self.stages.items()}

    def _note(self) -> None:
        self.noted = time.monotonic()
        if self.audit is None:
            return
        now = {"stage": self.now, "running": self.stages[self.now].running, "interval": self.interval}
        try:
            write_progress(self.audit, {**now, "stages": self.counters(), "time": time.time()})
        except OSError as error:  # a hint: the work itself finds out whether storage has failed
            LOG.warning("progress is not written down: %s", error)
