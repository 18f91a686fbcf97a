"""The features of a finished audit for one question after another: in memory, in files of this machine, or streamed.

A part is kept in memory if the budget of memory has room for it, else in a file of this machine if the budget of disk
has, else it is read from the store for every question. A kept part was checked once, against its sha256.
"""

import json
import mmap
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float32, Num, UInt8

from concept_trak import UserError
from concept_trak.audit.score_sample import sampled_rows
from concept_trak.audit.worker import StoreWorker
from concept_trak.store.part import Block
from concept_trak.store.records import Record

Key = tuple[str, str]
"""The fingerprint and the shard of a part."""
ALIGNED = 64
"""Arrays in a file begin at multiples of so many bytes."""


@dataclass(frozen=True)
class KeepingBudget:
    """What the features of an audit may take on this machine. Parts that do not fit are read from the store each time.

    Beside it, a pass holds about three parts of at most 90 MB.
    """

    memory: int = 0
    """Bytes of memory. int8 and float16 features take as much as on storage, and each id about 60 bytes more."""
    disk: int = 0
    """Bytes of disk for the parts that do not fit into memory; only of use where the store is slower than the disk."""
    folder: str = ""
    """A folder on that disk; empty is the system's folder for temporary files."""

    def __post_init__(self) -> None:
        for name in ("memory", "disk"):
            if getattr(self, name) < 0:
                raise UserError(f"keep.{name}={getattr(self, name)}; expected a number of bytes, or 0")


class KeptFeatures:
    """Yields the features of parts as `StoreWorker.blocks` does, and keeps them within a budget.

    One thread at a time may read.

    Args:
        reader: reads the parts of the store.
        budget: what may be kept.
        expected: bytes of all parts that will be read.

    Raises:
        UserError: the disk does not have the space of the budget.
    """

    def __init__(self, reader: StoreWorker, budget: KeepingBudget, expected: int) -> None:
        self._reader, self._budget = reader, budget
        self._in_memory, self._on_disk = dict[Key, list[Block]](), dict[Key, list[MappedBlock]]()
        self._sampled = dict[tuple[Key, int], list[int]]()
        self.memory = 0
        """Bytes of memory that are used."""
        size = min(budget.disk, max(0, expected - budget.memory) * 5 // 4)
        self.disk = MappedFile(budget.folder, size) if size else None
        """The file on this machine's disk, if there is one."""

    def blocks(self, records: Sequence[Record]) -> Generator[Block, None, None]:
        """The row groups of the parts, in order.

        Raises:
            Damaged: a part that was not kept is not the one of its record.
        """
        for is_kept, group in groupby(records, self._is_kept):
            run = list(group)
            yield from self._kept(run) if is_kept else self._streamed(run)

    @property
    def keeps(self) -> bool:
        """Whether parts are kept as long as there is room."""
        return self._budget.memory + self._budget.disk > 0

    def sampled_rows(self, record: Record, ids: Sequence[str], of: int) -> list[int]:
        """As `score_sample.sampled_rows`, which takes longer than the scores; computed once for each part."""
        key = _key(record), of
        if key not in self._sampled:
            self._sampled[key] = sampled_rows(ids, of)
        return self._sampled[key]

    def _is_kept(self, record: Record) -> bool:
        return _key(record) in self._in_memory or _key(record) in self._on_disk

    def _kept(self, records: Sequence[Record]) -> Iterator[Block]:
        for key in map(_key, records):
            if key in self._in_memory:
                yield from self._in_memory[key]
            else:
                yield from (block.open() for block in self._on_disk[key])

    def _streamed(self, records: Sequence[Record]) -> Iterator[Block]:
        with closing(self._reader.blocks(*records)) as coming:
            for record in records:
                part, rows = list[Block](), 0
                keeps = self._has_space(record)
                while rows < record.rows:
                    block = next(coming)
                    rows += len(block.ids)
                    if keeps:
                        part.append(block)
                        if rows == record.rows:  # before it is yielded, because a caller may stop there
                            self._keep(_key(record), part)
                    yield block

    def _has_space(self, record: Record) -> bool:
        free = self.disk.free if self.disk else 0
        return record.bytes <= max(self._budget.memory - self.memory, free)

    def _keep(self, key: Key, part: list[Block]) -> None:
        """Keep a part where there is space for it."""
        size = sum(map(memory_of, part))
        if self.memory + size <= self._budget.memory:
            self.memory += size
            self._in_memory[key] = part
        elif self.disk and (mapped := self.disk.append(part)):
            self._on_disk[key] = mapped


def memory_of(block: Block) -> int:
    """The bytes that a block takes in memory, with its ids."""
    arrays = block.unit.nbytes + block.weight.nbytes + block.scale.nbytes
    return arrays + sum(map(sys.getsizeof, block.ids)) + sys.getsizeof(block.ids)


@dataclass(frozen=True)
class MappedBlock:
    """A block whose arrays are views of a mapped file; `ids` is JSON. They take memory only while they are read."""

    ids: UInt8[np.ndarray, " b"]
    weight: Float32[np.ndarray, " n"]
    scale: Float32[np.ndarray, " n"]
    unit: Num[np.ndarray, "n k"]

    def open(self) -> Block:
        """The block, with its ids as strings."""
        return Block(json.loads(self.ids.tobytes()), self.weight, self.scale, self.unit)


class MappedFile:
    """A file of a fixed size on this machine's disk, which is mapped into memory as a whole.

    It has no name, so nothing is left of it when the process ends, however it ends.

    Args:
        folder: where the file is; empty is the system's folder for temporary files.
        size: in bytes, which are reserved at once.

    Raises:
        UserError: the disk does not have as many.
    """

    def __init__(self, folder: str, size: int) -> None:
        self._size, self._end = size, 0
        try:
            with tempfile.TemporaryFile(dir=folder or None) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise UserError(
                f"{size / 1e9:.3g} GB for features cannot be reserved in {folder or tempfile.gettempdir()} ({error}); "
                "choose another folder, or a smaller budget of disk"
            ) from None
        self._map.madvise(mmap.MADV_SEQUENTIAL)

    @property
    def free(self) -> int:
        """Bytes that can be appended."""
        return self._size - self._end

    def append(self, part: Sequence[Block]) -> list[MappedBlock]:
        """Write the blocks of a part; empty if they do not fit."""
        ids = [np.frombuffer(json.dumps(block.ids).encode(), np.uint8) for block in part]
        blocks = [(own, block.weight, block.scale, block.unit) for own, block in zip(ids, part, strict=True)]
        if sum(array.nbytes + ALIGNED for arrays in blocks for array in arrays) > self.free:
            return []
        return [MappedBlock(*map(self._write, arrays)) for arrays in blocks]

    def _write(self, array: np.ndarray) -> np.ndarray:
        start = -(-self._end // ALIGNED) * ALIGNED
        self._end = start + array.nbytes
        view = np.frombuffer(self._map, array.dtype, array.size, start).reshape(array.shape)
        view[...] = array
        return view


def _key(record: Record) -> Key:
    return record.fingerprint, record.shard
