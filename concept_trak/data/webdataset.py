"""WebDataset: tar files in which members that follow one another and share a name up to the first dot are one sample.

Columns: `image` (a member jpg, png, webp, ...; or name one, as `seg.png`), every other member by its ending as text
(txt, cls), the fields of a json member, and `__key__`, the shared name. Members are read as bytes, in one pass over the
shard's own range of the file.
"""

import tarfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.decode import ENDINGS
from concept_trak.data.files import BLOCK_BYTES, Files, Listing, open_listed, open_planned, path_below, version
from concept_trak.data.format import Format, SourceRow, named_columns, require_columns, require_text
from concept_trak.data.inventory import LeftOutCounts, is_hidden
from concept_trak.data.shard import Shard, Source, cut
from concept_trak.data.tar import reason_unsafe, split_key, tar_members
from concept_trak.data.text import MOST_BYTES, decode_text, parse_json

INDEXERS = 16  # tars whose headers are read at a time
CHECKED = 16  # samples of each tar in which the columns are looked for
MOST_KINDS = 100  # endings that are counted apart
STREAMED = {"block_size": BLOCK_BYTES, "cache_type": "readahead"}


@dataclass
class _Sample:
    """Members that share a key: where the first begins, the endings of all, and the bytes of those that are wanted."""

    key: str
    offset: int
    endings: list[str] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)
    flaw: tuple[str, str] | None = None

    def pictures(self, images: Sequence[str]) -> list[str]:
        return [ending for ending in self.endings if ending in images]


@dataclass
class _Index:
    """The positions of the samples of a tar, and counts of everything else in it."""

    places: array = field(default_factory=lambda: array("Q"))
    tally: LeftOutCounts = field(default_factory=LeftOutCounts)
    dotted: int = 0
    """Samples without an image whose members have further dots in their names, as `0001.png` in `scan.0001.png`."""
    example: tuple[str, str] = ("", "")


def _sources(listing: Listing, files: Files, data: DataConfig, tally: LeftOutCounts) -> list[Source]:
    """Every tar, by name; `places` are the bytes at which its samples begin, found by reading the headers once."""
    with ThreadPoolExecutor(INDEXERS) as pool:
        indices = list(pool.map(partial(_index, listing.fs, data=data), files))
    for index in indices:
        tally.extend(index.tally.left_out())
    return [
        Source(listing.fs.unstrip_protocol(name), version(info), len(index.places), index.places)
        for (name, info), index in zip(files.items(), indices, strict=True)
    ]


def _index(fs: Any, name: str, data: DataConfig) -> _Index:
    """
    Raises:
        UserError: the tar is not readable, the members of a sample are not together, or most names have extra dots.
    """
    index, keys, reader = _Index(), set[str](), _Reader(data, [column for _, column in named_columns(data)])
    with open_listed(fs, name, **STREAMED) as file:
        for sample in _samples(file, name, lambda ending: False, index.tally):
            if sample.key in keys:
                raise UserError(
                    f"{name}: the members of {sample.key!r} are not in one piece (again at byte {sample.offset}); "
                    "write the tar in order of names (tar --sort=name)"
                )
            keys.add(sample.key)
            index.places.append(sample.offset)
            _count(sample, reader, index)
    if 2 * index.dotted > len(index.places):
        key, ending = index.example
        raise UserError(
            f"{name}: WebDataset ends the name of a sample at its first dot, so {key}.{ending} is the member "
            f"{ending!r} of the sample {key!r}, and {index.dotted} of {len(index.places)} samples have no image; "
            f"rename the members without further dots, or name one with data.image_column={ending}"
        )
    return index


def _count(sample: _Sample, reader: "_Reader", index: _Index) -> None:
    """Count the members that no column uses."""
    for ending in sample.endings:
        if not reader.wants(ending):
            known = ("member", f"ending .{ending}") in index.tally.counts or len(index.tally.counts) < MOST_KINDS
            kind = f"ending .{ending[:40]}" if known else "of further endings"
            index.tally.add("member", kind, f"{sample.key}.{ending}")
    dotted = [e for e in sample.endings if "." in e and e.rpartition(".")[2] in ENDINGS]
    if dotted and not sample.pictures(reader.images):
        index.dotted += 1
        index.example = index.example if index.example[0] else (sample.key, dotted[0])


def _samples(
    file: Any, name: str, wanted: Callable[[str], bool], tally: LeftOutCounts | None = None
) -> Iterator[_Sample]:
    """The samples from where the file is positioned; the bytes of wanted members are read on the way."""
    sample = None
    for tar, member in tar_members(file, name):
        if is_hidden(member.name):
            if tally:
                tally.add("member", "with hidden names", member.name)
            continue
        key, ending = split_key(member.name)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key, member.offset)
        sample.endings.append(ending)
        if reason := reason_unsafe(member):
            sample.flaw = ("unsafe_member", reason)
        elif wanted(ending):
            _read(tar, member, sample, ending)
    if sample is not None:
        yield sample


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, ending: str) -> None:
    """The bytes of a member. Of one that is too long for a text, only enough to be refused as a text."""
    content = tar.extractfile(member)
    assert content is not None, "a regular file has content"
    most = member.size if ending.rpartition(".")[2] in ENDINGS else MOST_BYTES + 1
    sample.content[ending] = content.read(most)


@dataclass(frozen=True)
class _Reader:
    """The members that the columns are read from, and their values."""

    data: DataConfig
    columns: Sequence[str]

    @property
    def images(self) -> Sequence[str]:
        """The endings that `data.image_column` may have."""
        return ENDINGS if self.data.image_column == "image" else (self.data.image_column,)

    @property
    def plain(self) -> set[str]:
        return {c for c in self.columns if c != self.data.image_column}

    def wants(self, ending: str) -> bool:
        pictured = self.data.image_column in self.columns and ending in self.images
        return pictured or ending in self.plain or (ending == "json" and bool(self.plain - {"__key__"}))

    def row(self, number: int, prefix: str, sample: _Sample) -> SourceRow:
        values = {c: self._value(sample, c) for c in self.plain}
        pictures = sample.pictures(self.images)
        if self.data.image_column in self.columns and pictures:
            values[self.data.image_column] = {"bytes": sample.content.get(pictures[0])}
        name = f"{prefix}:{sample.key}" if prefix else sample.key
        return SourceRow(number, name, values, sample.flaw or self._flaw(sample, pictures))

    def _flaw(self, sample: _Sample, pictures: list[str]) -> tuple[str, str] | None:
        if not pictures:
            there, column = ", ".join(sample.endings), self.data.image_column
            dot = "; a sample's name ends at its first dot" if any("." in e for e in sample.endings) else ""
            return "no_image", f"has no member for data.image_column={column!r} (there: {there}){dot}"
        if len(pictures) > 1:
            return "several_images", f"has {', '.join(pictures)}; name one of them with data.image_column"
        return None

    def _value(self, sample: _Sample, column: str) -> Any:
        """A member as text, else a field of the json member. What cannot be read is a flaw of the sample."""
        if column == "__key__":
            return sample.key
        try:
            if column in sample.content:
                return decode_text(sample.content[column], f"its {column} member")
            return _fields(sample).get(column)
        except UserError as error:
            reason = "text" if column in sample.content else "json"
            sample.flaw = sample.flaw or (reason, str(error))
            return None


def _fields(sample: _Sample) -> dict[str, Any]:
    """
    Raises:
        UserError: the json member cannot be read.
    """
    fields = parse_json(sample.content.get("json", b"{}"), "its json member")
    return fields if isinstance(fields, dict) else {}


def _check(source: Source, data: DataConfig) -> Iterable[str]:
    """Check that some of a tar's first samples have every column that the settings name, and captions are text."""
    there, values = {"__key__": None}, dict[str, list[Any]]()
    for shard in cut(source, CHECKED)[:1]:
        with open_planned(shard, **STREAMED) as file:
            first = zip(range(shard.rows), _samples(file, source.uri, lambda ending: ending == "json"), strict=False)
            for _, sample in first:
                fields = _readable_fields(sample)
                there |= dict.fromkeys([*sample.endings, *fields])
                for column, value in fields.items():
                    values.setdefault(column, []).append(value)
    there |= {"image": None} if set(there) & set(ENDINGS) else {}
    if not source.rows:
        return ()
    unread = require_columns(data, sorted(there), f"in none of the first samples of {source.uri}")
    members = {*ENDINGS, "json", "image", "__key__"}  # members are counted one by one; these are fields
    for key, column in named_columns(data):
        if key in ("data.caption_column", "data.other_captions") and data.captions != "class":
            require_text(key, column, values.get(column, []), source.uri)
    return [column for column in unread if column in values and column not in members]


def _readable_fields(sample: _Sample) -> dict[str, Any]:
    try:
        return _fields(sample)
    except UserError:  # a reject, when its row is read
        return {}


def _rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, their ids made of the tar's name below `data.uri` and the key.

    It starts at the shard's first byte and ends with its last sample; members that no column needs are skipped.
    """
    prefix, reader = path_below(shard.source, data.uri), _Reader(data, columns)
    with open_planned(shard, **STREAMED) as file:
        file.seek(shard.places[0])
        numbers = range(shard.first_row, shard.first_row + shard.rows)
        for number, sample in zip(numbers, _samples(file, shard.source, reader.wants), strict=False):
            yield reader.row(number, prefix, sample)


FORMAT = Format((".tar",), _sources, _check, _rows)
