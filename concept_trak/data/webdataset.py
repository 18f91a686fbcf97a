"""WebDataset: tar files in which members that follow one another and share a name up to the first dot are one sample.

Columns: `image` (a member jpg, png, webp, ...; or name one, as `seg.png`), every other member by its ending as text
(txt, cls), the fields of a json member, and `__key__`, the shared name. A tar is read once for its index; then each
shard, and each image that is shown, by its own range of bytes.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.decode import ENDINGS
from concept_trak.data.files import (
    BLOCK_BYTES,
    Files,
    Listing,
    LookAheadCache,
    open_planned,
    open_range,
    path_below,
    version,
)
from concept_trak.data.format import (
    Extent,
    Findings,
    Format,
    RowImage,
    SourceRow,
    known_columns,
    named_columns,
    require_columns,
    require_text,
)
from concept_trak.data.image_size import size_at_hand
from concept_trak.data.inventory import LeftOutCounts, is_hidden
from concept_trak.data.shard import UNKNOWN, Shard, Source
from concept_trak.data.tar import reason_unsafe, split_key, tar_members
from concept_trak.data.text import MOST_BYTES, decode_text, parse_json

CHECKED = 16  # samples of each tar in which the columns are looked for
MOST_KINDS = 100  # endings that are counted apart
STREAMED = {"block_size": BLOCK_BYTES, "cache_type": LookAheadCache.name}


@dataclass
class _Sample:
    """Members that share a key: where the first begins and the last ends, the bytes of those that are wanted, and the
    [width, height] of an image that is not."""

    key: str
    offset: int
    end: int = 0
    endings: list[str] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)
    flaw: tuple[str, str] | None = None
    size: tuple[int, int] | None = None

    def pictures(self, images: Sequence[str]) -> list[str]:
        return [ending for ending in self.endings if ending in images]


def _sources(listing: Listing, files: Files, data: DataConfig, tally: LeftOutCounts) -> list[Source]:
    """Every tar, by name."""
    return [
        Source(uri=listing.fs.unstrip_protocol(name), version=version(info), rows=UNKNOWN)
        for name, info in files.items()
    ]


@dataclass
class _Columns:
    """What the first samples of a tar have, and how many samples have no image for a dot in their members' names."""

    endings: dict[str, None] = field(default_factory=dict)
    fields: dict[str, list[Any]] = field(default_factory=dict)
    dotted: int = 0
    example: tuple[str, str] = ("", "")

    def add(self, sample: _Sample) -> None:
        self.endings |= dict.fromkeys(sample.endings)
        for column, value in _readable_fields(sample).items():
            self.fields.setdefault(column, []).append(value)


def _rows(source: Source, data: DataConfig, findings: Findings) -> Iterator[SourceRow]:
    """The rows of a tar, in one pass over its headers and texts, without the bytes of large members; their ids are the
    tar's name below `data.uri` and the key.

    Raises:
        UserError: the tar is not readable, its samples are not in one piece each, most names have a dot too many, or
            none of the first samples has a column that the settings name.
    """
    prefix, reader = path_below(source.uri, data.uri), _Reader(data, known_columns(data))
    keys, columns = set[str](), _Columns()
    with open_planned(source.uri, source.version, **STREAMED) as file:
        samples = _samples(file, source.uri, reader.reads, findings.left_out, reader.images)
        for number, sample in enumerate(samples):
            if sample.key in keys:
                raise UserError(
                    f"{source.uri}: the members of {sample.key!r} are not in one piece (again at byte "
                    f"{sample.offset}); write the tar in order of names (tar --sort=name)"
                )
            keys.add(sample.key)
            _count(sample, reader, findings.left_out, columns)
            if number < CHECKED:
                columns.add(sample)
            if number == CHECKED - 1:
                findings.unread += _unread(source, columns, data)
            extent = Extent(sample.offset, sample.end - sample.offset)
            yield reader.row(number, prefix, sample)._replace(extent=extent)
    _require_few_dotted(source, columns, len(keys))
    if 0 < len(keys) < CHECKED:
        findings.unread += _unread(source, columns, data)


def _require_few_dotted(source: Source, columns: _Columns, samples: int) -> None:
    if 2 * columns.dotted > samples:
        key, ending = columns.example
        raise UserError(
            f"{source.uri}: WebDataset ends the name of a sample at its first dot, so {key}.{ending} is the member "
            f"{ending!r} of the sample {key!r}, and {columns.dotted} of {samples} samples have no image; "
            f"rename the members without further dots, or name one with data.image_column={ending}"
        )


def _count(sample: _Sample, reader: "_Reader", tally: LeftOutCounts, columns: _Columns) -> None:
    """Counts the members that no column is read from."""
    for ending in sample.endings:
        if not (reader.wants(ending) or ending in (*reader.images, *reader.conditioning)):
            is_listed = ("member", f"ending .{ending}") in tally.counts or len(tally.counts) < MOST_KINDS
            kind = f"ending .{ending[:40]}" if is_listed else "of further endings"
            tally.add("member", kind, f"{sample.key}.{ending}")
    dotted = [e for e in sample.endings if "." in e and e.rpartition(".")[2] in ENDINGS]
    if dotted and not sample.pictures(reader.images):
        columns.dotted += 1
        columns.example = columns.example if columns.example[0] else (sample.key, dotted[0])


def _samples(
    file: Any,
    name: str,
    reads: Callable[[str], bool],
    tally: LeftOutCounts | None = None,
    measured: Sequence[str] = (),
) -> Iterator[_Sample]:
    """The samples from where the file is positioned, each with the bytes of the members that `reads` accepts, and the
    size of an image whose ending is `measured`."""
    sample = None
    for member in tar_members(file, name):
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
        sample.end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if reason := reason_unsafe(member):
            sample.flaw = ("unsafe_member", reason)
        elif reads(ending):
            sample.content[ending] = _read(file, name, member, ending)
        elif ending in measured:
            sample.size = size_at_hand(file, member.offset_data, member.size)
    if sample is not None:
        yield sample


def _read(file: Any, name: str, member: tarfile.TarInfo, ending: str) -> bytes:
    """The bytes of a member. Of one that is too long for a text, only enough to be refused as a text.

    Raises:
        UserError: the tar `name` ends inside of the member.
    """
    size = member.size if ending.rpartition(".")[2] in ENDINGS else min(member.size, MOST_BYTES + 1)
    file.seek(member.offset_data)
    content = file.read(size)
    if len(content) < size:
        raise UserError(f"{name} is cut off inside of {member.name!r}; write it again, or remove it from data.uri")
    return content


@dataclass(frozen=True)
class _Reader:
    """The members that the columns are read from, and their values."""

    data: DataConfig
    columns: Sequence[str]

    @property
    def images(self) -> Sequence[str]:
        """The endings that `data.image_column` may have."""
        return ENDINGS if self.data.image_column == "image" else (self.data.image_column,)

    @cached_property
    def plain(self) -> set[str]:
        return {c for c in self.columns if c not in (self.data.image_column, *self.conditioning)}

    @property
    def conditioning(self) -> Sequence[str]:
        """The ending of conditioning images, if the settings name one."""
        return (self.data.conditioning_image_column,) if self.data.conditioning_image_column else ()

    def wants(self, ending: str) -> bool:
        pictured = self.data.image_column in self.columns and ending in self.images
        pictured |= ending in self.conditioning and ending in self.columns
        return pictured or ending in self.plain or (ending == "json" and bool(self.plain - {"__key__"}))

    def reads(self, ending: str) -> bool:
        """Whether an index reads the member: every json, because its fields are listed."""
        return self.wants(ending) or ending == "json"

    def row(self, number: int, prefix: str, sample: _Sample) -> SourceRow:
        values = {c: self._value(sample, c) for c in self.plain}
        pictures = sample.pictures(self.images)
        name = f"{prefix}:{sample.key}" if prefix else sample.key
        size = sample.size if len(pictures) == 1 else None
        return SourceRow(number, name, values, sample.flaw or self._flaw(sample, pictures), size=size)

    def _flaw(self, sample: _Sample, pictures: list[str]) -> tuple[str, str] | None:
        if not pictures:
            members, column = ", ".join(sample.endings), self.data.image_column
            dot = "; a sample's name ends at its first dot" if any("." in e for e in sample.endings) else ""
            return "no_image", f"has no member for data.image_column={column!r} (there: {members}){dot}"
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


def _unread(source: Source, columns: _Columns, data: DataConfig) -> Iterable[str]:
    """The columns that no setting names, once some of a tar's first samples have every column that the settings name,
    and captions are text."""
    available = {"__key__": None, **columns.endings, **dict.fromkeys(columns.fields)}
    available |= {"image": None} if set(available) & set(ENDINGS) else {}
    unread = require_columns(data, sorted(available), f"in none of the first samples of {source.uri}")
    members = {*ENDINGS, "json", "image", "__key__"}  # members are counted one by one; these are fields
    for key, column in named_columns(data):
        if key in ("data.caption_column", "data.other_captions") and data.captions != "class":
            require_text(key, column, columns.fields.get(column, []), source.uri)
    return [column for column in unread if column in columns.fields and column not in members]


def _readable_fields(sample: _Sample) -> dict[str, Any]:
    try:
        return _fields(sample)
    except UserError:  # a reject, when its row is read
        return {}


def _images(shard: Shard, data: DataConfig) -> Iterator[RowImage]:
    """The images of the rows, read from their own range of the tar; members that are no image are passed over."""
    reader = _Reader(data, [data.image_column, data.conditioning_image_column])
    extents = shard.index_table.select(["offset", "length"]).to_pylist()
    start, end = extents[0]["offset"], extents[-1]["offset"] + extents[-1]["length"]
    with open_range(shard.source, shard.version, start, end, padding=2 * tarfile.BLOCKSIZE) as file:
        for _, sample in zip(extents, _samples(file, shard.source, reader.wants), strict=True):
            pictures = sample.pictures(reader.images)
            image = sample.content.get(pictures[0]) if pictures else None
            yield RowImage(image, conditioning=sample.content.get(data.conditioning_image_column))


FORMAT = Format((".tar",), _sources, _rows, _images)
