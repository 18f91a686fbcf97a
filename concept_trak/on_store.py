"""A worker that needs the store and no model, and how it reads features: ahead of what it does with them."""

from collections.abc import Generator, Iterable, Iterator

import torch
from torch import Tensor

from concept_trak.stages import Work
from concept_trak.store.ahead import ahead
from concept_trak.store.codec import blocks
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Block
from concept_trak.store.records import Record, read_part


class OnStore:
    """A worker that needs the store and no model."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(max(1, int(work.config.cluster.cpus)))
        self.work, self.store = work, Store(work.config.store)
        self.audit = Audit(self.store, work.config.audit)

    def blocks(self, *records: Record) -> Generator[Block, None, None]:
        """The row groups of the parts, in order. Each part is checked against its record, by its sha256.

        While one row group is used, a thread decodes the next, and another reads the next part. So two parts
        and two row groups are in memory, however many there are.
        """
        return ahead(_decoded(ahead(read_part(self.store, record) for record in records)))

    def features(self, *records: Record) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """(ids, weight [n], phi [n, k]) of each row group of the parts, in order, in float32."""
        for block in self.blocks(*records):
            unit, weight, scale = map(torch.from_dlpack, (block.unit, block.weight, block.scale))
            yield block.ids, weight.clone(), unit.float() * scale[:, None]


def _decoded(parts: Iterable[bytes]) -> Iterator[Block]:
    for data in parts:
        yield from blocks(data, checked=True)
