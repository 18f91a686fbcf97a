"""Where a run is: a bar on a terminal, a line an interval otherwise, and `progress.json` for everybody else."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from concept_trak.store.manifest import Audit, progress


@dataclass
class Progress:
    """Progress of one audit, stage by stage."""

    audit: Audit
    interval: float
    said: float = 0.0
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def line(self, text: str) -> None:
        print(text, flush=True)

    def track(self, stage: str, outcomes: Iterator[Any], total: int, samples: Callable[[Any], int]) -> Iterator[Any]:
        """Pass outcomes on, counting them; `samples` is how many samples an item stands for."""
        start, done, seen = time.monotonic(), 0, 0
        bar = tqdm(total=total, desc=f"{stage:<10}", unit="shard", leave=True) if sys.stderr.isatty() else None
        self._note(stage, 0, total, 0, start, True)
        for outcome in outcomes:
            done, seen = done + 1, seen + samples(outcome.item)
            if bar is not None:
                bar.set_postfix_str(f"{seen / max(1e-9, time.monotonic() - start):.1f} samples/s" if seen else "")
                bar.update()
            self._note(stage, done, total, seen, start, bar is not None)
            yield outcome
        if bar is not None:
            bar.close()
        self._note(stage, done, total, seen, start, bar is not None, last=True)

    def _note(
        self, stage: str, done: int, total: int, seen: int, start: float, quiet: bool, last: bool = False
    ) -> None:
        """`progress.json`, and without a terminal a line; both at most once an interval."""
        now = time.monotonic()
        if not last and done and now - self.said < self.interval:
            return
        self.said, took = now, max(1e-9, now - start)
        left = took / done * (total - done) if done else None
        self.stages[stage] = {"done": done, "of": total, "samples": seen, "seconds": round(took, 3),
                              "samples_per_second": round(seen / took, 3), "seconds_left": left}  # fmt: skip
        progress(self.audit, {"stage": stage, "stages": self.stages, "time": time.time()})
        if not quiet and (done or last):
            eta = f", {left:.0f} s left" if left else ""
            rate = f", {seen / took:.1f} samples/s" if seen else ""
            self.line(f"{stage:<10} {done}/{total}{rate}{eta}")
