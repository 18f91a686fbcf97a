"""What the ends of a ranking look like: captions, labels and pictures of chosen samples, from the data itself."""

import hashlib
from dataclasses import dataclass

import torch

from concept_trak.data.image import to_png
from concept_trak.data.sample import Sample, found
from concept_trak.data.shard import Shard
from concept_trak.stages import Attempt, Work


@dataclass(frozen=True)
class Look:
    """Samples of one shard; those also in `pictured` are drawn, at `resolution`, as the model sees them."""

    shard: Shard
    ids: tuple[str, ...]
    pictured: frozenset[str]
    resolution: int


@dataclass(frozen=True)
class Seen:
    """One sample as people see it; `png` is empty where no picture was asked for."""

    sample_id: str
    caption: str
    source: str
    row: int
    labels: dict[str, str]
    png: bytes
    content: str = ""
    """A hash of what the model sees: equal for two files of one picture."""


class Show:
    """The samples of a look."""

    def __init__(self, work: Work) -> None:
        self.data = work.config.data

    def __call__(self, look: Look, attempt: Attempt) -> list[Seen]:
        return [self._seen(s, look) for s in found(look.shard, self.data, look.resolution, look.ids)]

    def _seen(self, s: Sample, look: Look) -> Seen:
        png = to_png(s.pixels) if s.id in look.pictured and s.pixels is not None else b""
        content = hashlib.sha256(s.content.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        return Seen(s.id, s.caption, look.shard.source, s.row, s.labels, png, content)
