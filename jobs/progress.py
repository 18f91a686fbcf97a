"""The progress of a run: a bar on a terminal, or else a line for each interval; and always `progress.json`.

If the items of a stage have samples, as shards do, progress counts samples: workers report them while they work on an
item.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from cluster.executor import Load, Outcome
from concept_trak.audit.stage_progress import StageProgress
from concept_trak.store.manifest import Audit, write_progress
from jobs.metrics import Meter

LOG = logging.getLogger(__name__)
BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}{postfix}]"
REDRAW = 0.1  # seconds between two drawings of a bar


@dataclass
class Progress:
    """The progress of one audit, stage by stage. `interval` is the least number of seconds between two reports.

    The driver writes `progress.json` about once an interval, also while it only waits for workers. A reader therefore
    notices a dead driver. Without an `audit`, no file is written.
    """

    audit: Audit | None
    interval: float
    meter: Meter = field(default_factory=Meter)
    stages: dict[str, StageProgress] = field(default_factory=dict)
    now: str = ""
    written_at: float = 0.0
    drawn_at: float = field(default=0.0, init=False)
    bar: Any = field(default=None, init=False, repr=False)
    last_line: str = field(default="", init=False)

    def line(self, text: str) -> None:
        print(text, flush=True)

    def track(self, name: str, outcomes: Iterator[Outcome], items: Sequence[Any]) -> Iterator[Outcome]:
        """Count the outcomes of items and pass them on. If a stage runs several times, as that of the Grams does, its
        counts add up."""
        stage = self.stages.setdefault(name, StageProgress())
        stage.expect(items)
        self.now = name
        self.meter.begin(name)
        self._note()
        with tqdm(total=1, desc=f"{name:<10}", bar_format=BAR, disable=not sys.stderr.isatty()) as self.bar:
            for outcome in outcomes:
                failed, attempts = outcome.error is not None, outcome.attempts
                stage.count(outcome.item, outcome.result, failed=failed, attempts=attempts, seconds=outcome.seconds)
                self.meter.ended(outcome)
                self._show(stage, stage.done == stage.of)
                yield outcome
        self.meter.at(stage.done - stage.failed, stage.failed, Load(running=0))

    def watch(self, load: Load) -> None:
        """Take the load that the executor reports about the present stage."""
        stage = self.stages[self.now]
        first = stage.running == stage.done == 0 < load.running
        stage.take(load.running, load.units)
        self.meter.at(stage.done - stage.failed, stage.failed, load)
        if first:  # at once, because the executor may not report again until that item has ended
            self._note()
        self._show(stage, False)

    def _show(self, stage: StageProgress, last: bool) -> None:
        """Show a stage on the terminal or as a line, and write the file, if it is time or the stage ends (`last`)."""
        if not self.bar.disable and (last or time.monotonic() - self.drawn_at >= REDRAW):
            self.drawn_at, self.bar.n = time.monotonic(), stage.share
            self.bar.set_postfix_str(str(stage))
        if last or self._due:
            self._note()
            line = f"{self.now:<10} {stage}"
            if self.bar.disable and line != self.last_line:
                self.last_line = line
                self.line(line)

    @property
    def _due(self) -> bool:
        return time.monotonic() - self.written_at >= self.interval

    def counters(self) -> dict[str, dict[str, Any]]:
        """The counts of each stage of this run, by its name."""
        return {name: stage.counters() for name, stage in self.stages.items()}

    def _note(self) -> None:
        self.written_at = time.monotonic()
        if self.audit is None:
            return
        now = {"stage": self.now, "running": self.stages[self.now].running, "interval": self.interval}
        try:
            write_progress(self.audit, {**now, "stages": self.counters(), "time": time.time()})
        except OSError as error:  # a hint: the work itself finds out whether storage has failed
            LOG.warning("progress.json cannot be written: %s", error)
