"""Workers that die at chosen moments: fault injection, run by real processes of a Ray cluster.

Each fate falls on one shard, on its first attempt; which shard it was stands in a file named after the fate.
"""

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import torch

from concept_trak.attribution.features import Features, discard_report
from concept_trak.audit import featurize
from concept_trak.store.store import Store

FATES = ("mid_shard", "before_part", "before_record", "after_record", "out_of_memory")
MOMENTS = {
    "before_part": ("/parts/", False),
    "before_record": ("/commits/", False),
    "after_record": ("/commits/", True),
}


def books() -> Path:
    """Where fates and work are written down."""
    return Path(os.environ["DEADLY_BOOKS"])


def claim(shard: str) -> str:
    """The first fate that nobody has met yet, "" if all have been met."""
    for fate in FATES:
        try:
            with open(books() / fate, "x") as file:
                file.write(shard)
            return fate
        except FileExistsError:
            continue
    return ""


class Fatal(Store):
    """A store at which its process is killed: before or after the create of a name that holds `part`."""

    def __init__(self, uri: str, part: str, after: bool) -> None:
        super().__init__(uri)
        self.part, self.after = part, after

    def create(self, name: str, data: bytes) -> bool:
        if self.part in name and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        created = super().create(name, data)
        if self.part in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return created


class Slow(featurize.FeaturizeWorker):
    """The real worker, which takes a second more for a shard: time to be killed in, without heat."""

    def __call__(self, item: featurize.FeaturizeTask, attempt: featurize.Attempt):
        time.sleep(1)
        return super().__call__(item, attempt)


class Stopped(featurize.FeaturizeWorker):
    """The real worker, which is stopped in its first shard of all, and never goes on."""

    def __call__(self, item: featurize.FeaturizeTask, attempt: featurize.Attempt):
        with contextlib.suppress(FileExistsError):  # then it was another shard's fate
            with open(books() / "stopped", "x") as file:
                file.write(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().__call__(item, attempt)


class Fated(featurize.FeaturizeWorker):
    """The real worker, and the fates of its shards."""

    def __call__(self, item: featurize.FeaturizeTask, attempt: featurize.Attempt):
        self.now = f"{item.shard.name} {attempt.number}"
        self.fate = claim(item.shard.name) if attempt.number == 1 else ""
        sound = self.store
        if self.fate in MOMENTS:
            self.store = Fatal(sound.uri, *MOMENTS[self.fate])
        try:
            return super().__call__(item, attempt)
        finally:
            self.store = sound

    def features(self, methods, batch, report=discard_report) -> list[Features]:
        with open(books() / "work", "a") as file:
            file.write(f"{self.now} {len(batch)}\n")
        if self.fate == "mid_shard":
            (books() / "pid").write_text(str(os.getpid()))
            time.sleep(600)  # until it is killed from outside
        if self.fate == "out_of_memory":
            exhaust()
        return super().features(methods, batch, report)


def exhaust() -> None:
    """Ask for more memory than the process may have: the allocator itself fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, before[1]))
    try:
        torch.empty(2**30, dtype=torch.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
