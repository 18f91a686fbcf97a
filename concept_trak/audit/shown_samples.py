"""Captions, labels and pictures of the samples at the ends of a ranking, read from the data again."""

import hashlib
from dataclasses import dataclass, replace

import torch

from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import Work
from concept_trak.data.decode import image_format
from concept_trak.data.image import to_png, to_thumbnail
from concept_trak.data.sample import Sample, originals, samples_by_id
from concept_trak.data.shard import Shard
from concept_trak.store.consistency import REPAIR
from concept_trak.store.manifest import Audit, beside_report, write_bytes
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store

SIDE = 192  # pixels of a thumbnail: twice what the page gives it, for screens of high density


@dataclass(frozen=True)
class ShowTask(Task):
    """Samples of one shard. Those in `pictured` get a picture at `resolution`, cropped as for the model.

    With `files`, thumbnails and originals are written to the folder of the report, and the result has only their names.
    """

    shard: Shard
    ids: tuple[str, ...]
    pictured: frozenset[str]
    resolution: int
    files: bool = False

    @property
    def label(self) -> str:
        return self.shard.name


@dataclass(frozen=True)
class ShownSample:
    """One sample for the page. `png` is empty without a picture, or if the picture is a file; then `thumbnail` and
    `original` are names of files of the report."""

    sample_id: str
    caption: str
    source: str
    row: int
    labels: dict[str, str]
    png: bytes = b""
    thumbnail: str = ""
    original: str = ""
    content: str = ""
    """A hash of the pixels that the model gets: equal for two files of one picture."""


@dataclass(frozen=True)
class ShowResult:
    """The samples of a task, for the page."""

    samples: tuple[ShownSample, ...]


class ShowWorker:
    """Reads the samples of a task again, and draws those that a page shows."""

    def __init__(self, work: Work) -> None:
        self.data, self.audit = work.config.data, Audit(Store(work.config.store), work.config.audit)

    def __call__(self, task: ShowTask, attempt: Attempt) -> ShowResult:
        files = originals(task.shard, self.data, task.pictured) if task.files and task.pictured else {}
        samples = samples_by_id(task.shard, self.data, task.resolution, task.ids)
        if strangers := set(task.ids).difference(sample.id for sample in samples):
            raise Damaged(
                f"shard {task.shard.name} has a feature of {min(strangers)!r}, and {task.shard.source} has no such "
                f"sample among its rows. {REPAIR}"
            )
        return ShowResult(tuple(self._shown(task, sample, files.get(sample.id)) for sample in samples))

    def _shown(self, task: ShowTask, s: Sample, original: bytes | None) -> ShownSample:
        content = hashlib.sha256(s.content.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        seen = ShownSample(
            sample_id=s.id, caption=s.caption, source=task.shard.source, row=s.row, labels=s.labels, content=content
        )
        if s.pixels is None or s.id not in task.pictured:
            return seen
        if original is None:
            return replace(seen, png=to_png(s.pixels))
        key = hashlib.sha256(s.id.encode()).hexdigest()[:24]  # ids may hold what no file name may
        small, kind = to_thumbnail(s.pixels, SIDE)
        thumbnail, whole = f"thumbnails/{key}.{kind}", f"originals/{key}.{image_format(original)}"
        for name, data in ((thumbnail, small), (whole, original)):
            write_bytes(self.audit, beside_report(name), data)
        return replace(seen, thumbnail=thumbnail, original=whole)
