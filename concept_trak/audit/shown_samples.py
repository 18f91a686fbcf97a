"""Captions, labels and pictures of the samples at the ends of a ranking."""

import contextlib
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
from concept_trak.data.index import IndexedRow
from concept_trak.data.sample import FoundSample, rows_by_id, sample_of_image, samples_by_id
from concept_trak.data.shard import Shard
from concept_trak.store.audit_files import Audit, ListedFile, write_listed
from concept_trak.store.consistency import REPAIR
from concept_trak.store.image_copies import ImageCopy, copies_folder, image_copy, read_image_copy, write_image_copy
from concept_trak.store.manifest import beside_report
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store

SIDE = 192  # pixels of a thumbnail: twice what the page gives it, for screens of high density


@dataclass(frozen=True)
class ShowTask(Task):
    """Samples of one shard. Those in `pictured` get a picture at `resolution`, cropped as for the model.

    With `files`, thumbnails and originals are written to the folder of the report, and the result has only their names.
    With `copied`, the store gets a copy of every image that is read from the data.
    """

    shard: Shard
    ids: tuple[str, ...]
    pictured: frozenset[str]
    resolution: int
    files: bool = False
    copied: bool = True

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
    """Draws the samples of a task that a page shows. Images come from the copies that an earlier audit made; only those
    without a copy are read from the data."""

    def __init__(self, work: Work) -> None:
        store = Store(work.config.store)
        self.data, self.audit, self.index = work.config.data, Audit(store, work.config.audit), IndexReader(store)

    def __call__(self, task: ShowTask, attempt: Attempt) -> ShowResult:
        shard, ids = self.index(task.shard), frozenset(task.ids)
        files, copies = list[ListedFile](), _Copies(self.audit.store, shard)
        result, missing = list[ShownSample](), list[str]()
        for row in rows_by_id(shard, ids):
            copy = copies.read(row.number)
            if copy is None:
                missing.append(row.id)
            elif copy.image is None:
                result.append(_described(row, shard, copy.content))
            elif sample := sample_of_image(row, copy.image, shard, self.data, task.resolution):
                result.append(self._shown(task, sample, files))
        for sample in samples_by_id(shard, self.data, task.resolution, missing):
            result.append(self._shown(task, sample, files))
            if task.copied:
                copies.write(sample, result[-1].content)
        if strangers := ids.difference(sample.sample_id for sample in result):
            raise Damaged(
                f"shard {task.shard.name} has a feature of {min(strangers)!r}, and {task.shard.source} has no such "
                f"sample among its rows. {REPAIR}"
            )
        return ShowResult(tuple(result), tuple(files))

    def _shown(self, task: ShowTask, looked_up: FoundSample, files: list[ListedFile]) -> ShownSample:
        s, original = looked_up.sample, looked_up.original if task.files else None
        content = hashlib.sha256(s.content.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        seen = _described(looked_up.row, task.shard, content)
        if s.picture is None or s.id not in task.pictured:
            return seen
        if original is None:
            return replace(seen, png=to_png(s.picture))
        key = hashlib.sha256(s.id.encode()).hexdigest()[:24]  # ids may hold what no file name may
        small, kind = to_thumbnail(s.picture, SIDE)
        thumbnail, whole = f"thumbnails/{key}.{kind}", f"originals/{key}.{image_format(original)}"
        for name, data in ((thumbnail, small), (whole, original)):
            files.append(write_listed(self.audit, beside_report(name), data))
        return replace(seen, thumbnail=thumbnail, original=whole)


class OriginalReader:
    """Reads the files of training images as they lie in the data, one at a time; a copy in the store is read first.

    Args:
        store: where the index of the data lies.
        data: the settings that the images are read with.
        shards: the plan.
    """

    def __init__(self, store: Store, data: DataConfig, shards: Sequence[Shard]) -> None:
        self._store, self._index, self._data, self._shards = store, IndexReader(store), data, shards

    def __call__(self, source: str, row: int) -> bytes | None:
        """The image at a row of a source; None where it was encoded before, or is not in the plan."""
        for shard in self._shards:
            if shard.source == source and shard.first_row <= row < shard.first_row + shard.rows:
                if (copy := _Copies(self._store, shard).read(row)) is not None:
                    return copy.image
                alone = self._index(shard).rows_from(row, 1)
                (image,) = format_of(shard, self._data).images(alone, self._data)
                return image.content if isinstance(image.content, bytes) else None
        return None


def _described(row: IndexedRow, shard: Shard, content: str) -> ShownSample:
    """A sample without a picture; all but the hash of its content is in the index."""
    return ShownSample(
        sample_id=row.id, caption=row.caption, source=shard.source, row=row.number, labels=row.labels, content=content
    )


class _Copies:
    """The copies of a shard's images in the store. A shard whose index is not in the store has none."""

    def __init__(self, store: Store, shard: Shard) -> None:
        self._store, self._shard = store, shard
        self._names = {name for stored in shard.stored for name in store.names(copies_folder(stored.name))}

    def read(self, row: int) -> ImageCopy | None:
        """The copy of a row; None if there is none, also if it was removed since this object was made."""
        if (name := self._name(row)) in self._names:
            with contextlib.suppress(FileNotFoundError):
                return read_image_copy(self._store, name)
        return None

    def write(self, sample: FoundSample, content: str) -> None:
        """Copy the image file of a sample, or of a latent its hash."""
        if name := self._name(sample.row.number):
            copy = ImageCopy(sample.original) if sample.original else ImageCopy(content=content)
            write_image_copy(self._store, name, copy)

    def _name(self, row: int) -> str:
        of_row = (s for s in self._shard.stored if s.first_row <= row < s.first_row + s.rows)
        return next((image_copy(stored.name, row) for stored in of_row), "")
