"""Captions, labels and pictures of the samples at the ends of a ranking, read from the data again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from concept_trak.audit.index import IndexReader
from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import Work
from concept_trak.config import DataConfig
from concept_trak.data.decode import image_format
from concept_trak.data.format import format_of
from concept_trak.data.image import to_png, to_thumbnail
from concept_trak.data.sample import FoundSample, samples_by_id
from concept_trak.data.shard import Shard
from concept_trak.store.audit_files import Audit, ListedFile, write_listed
from concept_trak.store.consistency import REPAIR
from concept_trak.store.manifest import beside_report
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
    """The samples of a task, as people see them, and the files that were written."""

    samples: tuple[ShownSample, ...]
    files: tuple[ListedFile, ...] = ()


class ShowWorker:
    """Reads the samples of a task again, each by itself, and draws those that a page shows."""

    def __init__(self, work: Work) -> None:
        store = Store(work.config.store)
        self.data, self.audit, self.index = work.config.data, Audit(store, work.config.audit), IndexReader(store)

    def __call__(self, task: ShowTask, attempt: Attempt) -> ShowResult:
        shard, ids = self.index(task.shard), frozenset(task.ids)
        files, result = list[ListedFile](), list[ShownSample]()
        for sample in samples_by_id(shard, self.data, task.resolution, ids):
            result.append(self._shown(task, sample, files))
        if strangers := ids.difference(sample.sample_id for sample in result):
            raise Damaged(
                f"shard {task.shard.name} has a feature of {min(strangers)!r}, and {task.shard.source} has no such "
                f"sample among its rows. {REPAIR}"
            )
        return ShowResult(tuple(result), tuple(files))

    def _shown(self, task: ShowTask, looked_up: FoundSample, files: list[ListedFile]) -> ShownSample:
        s, original = looked_up.sample, looked_up.original if task.files else None
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
            files.append(write_listed(self.audit, beside_report(name), data))
        return replace(seen, thumbnail=thumbnail, original=whole)


class OriginalReader:
    """Reads the files of training images as they lie in the data, one at a time.

    Args:
        store: where the index of the data lies.
        data: the settings that the images are read with.
        shards: the plan.
    """

    def __init__(self, store: Store, data: DataConfig, shards: Sequence[Shard]) -> None:
        self._index, self._data, self._shards = IndexReader(store), data, shards

    def __call__(self, source: str, row: int) -> bytes | None:
        """The image at a row of a source; None where it was encoded before, or is not in the plan."""
        for shard in self._shards:
            if shard.source == source and shard.first_row <= row < shard.first_row + shard.rows:
                alone = self._index(shard).rows_from(row, 1)
                (image,) = format_of(shard, self._data).images(alone, self._data)
                return image.content if isinstance(image.content, bytes) else None
        return None
