"""A driver on a standing cluster, and its worker: `python -m metered FOLDER ADDRESS` ends when its input does."""

import os
import sys

from observed import Gated, Item

from cluster.executor import Resources, Task
from cluster.metrics import exported
from cluster.on_ray import OnRay
from concept_trak.audit.featurize import FeaturizeResult
from concept_trak.store.manifest import Audit
from concept_trak.store.records import Record
from concept_trak.store.store import Store
from jobs.metrics import METRICS, Meter
from jobs.progress import Progress


class Quartet(Item):
    """A task that stands for four samples."""

    samples = 4


class Recording(Gated):
    """Fails twice where the item says so, and commits a part of 1000 bytes with 3 rows and a reject for any other."""

    def __call__(self, item, attempt):
        super().__call__(item, attempt)
        if item == "troubled" and attempt.number <= 2:
            raise MemoryError("once more, at half the batch")
        if item == "hopeless":
            raise KeyError(item)
        return FeaturizeResult((Record(item, 3, 1, 1000, "", 0.0, 1.0, attempt.number, "", {"no_caption": 1}, ""),))


def run(folder: str, address: str) -> None:
    meter = Meter(exported(METRICS, {"audit": "week-1"}))
    progress = Progress(Audit(Store(folder), "week-1"), 0.2, meter)
    items = [Quartet("plain"), Quartet("troubled"), Quartet("hopeless")]
    outcomes = OnRay(address, workers=2, env_vars={"PYTHONPATH": os.environ["PYTHONPATH"]}).map(
        Task(Recording, folder),
        items,
        Resources(),
        progress.watch,
    )
    list(progress.track("featurize", outcomes, items))
    sys.stdin.read()


if __name__ == "__main__":
    import metered  # workers import the class by this name, and not as this program's

    metered.run(*sys.argv[1:])
