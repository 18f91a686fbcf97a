"""WebDataset: tar files in which members that stand together and share a name up to the first dot are one sample.

Columns: `image` (a member jpg, png, webp, ...; or name one, as `seg.png`), every other member by its ending as text
(txt, cls), the fields of a json member, and `__key__`, the shared name. Nothing is ever unpacked onto a disk: members
are read as bytes, in one pass over the shard's own range of the file.
"""

import difflib
import json
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from concept_trak.config import DataConfig
from concept_trak.data.files import BLOCK_BYTES, open_planned, path_below, version
from concept_trak.data.folder import IMAGES
from concept_trak.data.format import Files, Format, SourceRow, named_columns
from concept_trak.data.shard import Shard, Source, cut

MOST_BYTES = 256 << 20  # of one member: what says it is larger is no training image, and would fill the memory
READERS = 16
LOOKED_AT = 16  # samples of each tar that are asked which columns there are
STREAMED = {"block_size": BLOCK_BYTES, "cache_type": "readahead"}


@dataclass
class _Sample:
    """Members that share a key: where the first begins, the endings of all, and the bytes of those that are wanted."""

    key: str
    offset: int
    endings: list[str] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)
    flaw: tuple[str, str] | None = None


def _sources(fs: Any, path: str, files: Files, data: DataConfig) -> list[Source]:
    """Every tar, by name; `places` are the bytes at which its samples begin, found by going over the headers once."""
    with ThreadPoolExecutor(READERS) as pool:
        indices = list(pool.map(partial(_index, fs), files))
    return [
        Source(fs.unstrip_protocol(name), version(info), len(places), places)
        for (name, info), places in zip(files.items(), indices, strict=True)
    ]


def _index(fs: Any, name: str) -> Sequence[int]:
    places, keys = array("Q"), set[str]()
    with fs.open(name, **STREAMED) as file:
        for sample in _samples(file, name, lambda ending: False):
            if sample.key in keys:
                raise ValueError(
                    f"{name}: the members of {sample.key!r} do not stand together (again at byte {sample.offset}); "
                    "write the tar in order of names (tar --sort=name)"
                )
            keys.add(sample.key)
            places.append(sample.offset)
    return places


def _samples(file: Any, name: str, wanted: Callable[[str], bool]) -> Iterator[_Sample]:
    """The samples from where the file stands; the bytes of members whose ending is wanted are read on the way."""
    sample = None
    for tar, member in _members(file, name):
        key, ending = _split(member.name)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key, member.offset)
        sample.endings.append(ending)
        if danger := _danger(member):
            sample.flaw = ("unsafe_member", danger)
        elif wanted(ending):
            content = tar.extractfile(member)
            assert content is not None, "a regular file has content"
            sample.content[ending] = content.read()
    if sample is not None:
        yield sample


def _members(file: Any, name: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members that are no folders and not hidden, one in memory at a time.

    Raises:
        ValueError: the file is no tar, or ends or breaks off in the middle, which tarfile takes for its end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                if not member.isdir() and not member.name.rpartition("/")[2].startswith("."):
                    yield tar, member
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
    except tarfile.TarError as error:
        raise ValueError(f"{name} is not a readable tar file ({error}); write it again, or remove it") from None
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        what = "is damaged" if end else "is cut off: it has no end mark"
        raise ValueError(f"{name} {what} at byte {tar.offset}; write it again, or remove it from data.uri")


def _split(name: str) -> tuple[str, str]:
    """a/b.seg.png -> (a/b, seg.png), as WebDataset splits names."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _danger(member: tarfile.TarInfo) -> str:
    """Why a member is not read; empty if it may be."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"the member {member.name!r} names a place outside of the tar; write the tar from relative names"
    if not member.isreg() or member.issparse():
        return f"the member {member.name!r} is a link or a special file; write the tar with --dereference"
    if member.size > MOST_BYTES:
        return f"the member {member.name!r} has {member.size} bytes; expected at most {MOST_BYTES}"
    return ""


def _check(source: Source, data: DataConfig) -> None:
    """That some of a tar's first samples have every column that the settings name."""
    there = {"__key__"}
    for shard in cut(source, LOOKED_AT)[:1]:
        with open_planned(shard, **STREAMED) as file:
            first = zip(range(shard.rows), _samples(file, source.uri, lambda ending: ending == "json"), strict=False)
            for _, sample in first:
                there |= {*sample.endings, *_fields(sample)}
    there |= {"image"} if there & set(IMAGES) else set()
    for key, column in named_columns(data):
        if source.rows and column not in there:
            near = difflib.get_close_matches(column, there, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{key}={column!r} is in none of the first samples of {source.uri} (there: "
                f"{', '.join(sorted(there))}){hint}"
            )


def _rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, their ids made of the tar's name below `data.uri` and the key.

    Starts at the shard's first byte and ends with its last sample; members that are not asked for are passed over.
    """
    prefix, images = (
        path_below(shard.source, data.uri),
        IMAGES if data.image_column == "image" else (data.image_column,),
    )
    pictured = data.image_column in columns
    plain = {c for c in columns if c != data.image_column}

    def wanted(ending: str) -> bool:
        return (pictured and ending in images) or ending in plain or (ending == "json" and bool(plain - {"__key__"}))

    with open_planned(shard, **STREAMED) as file:
        file.seek(shard.places[0])
        numbers = range(shard.first_row, shard.first_row + shard.rows)
        for number, sample in zip(numbers, _samples(file, shard.source, wanted), strict=False):
            values = {c: _value(sample, c) for c in plain}
            found = [ending for ending in sample.endings if ending in images]
            if pictured and found:
                values[data.image_column] = {"bytes": sample.content.get(found[0])}
            name = f"{prefix}:{sample.key}" if prefix else sample.key
            yield SourceRow(number, name, values, sample.flaw or _flaw(sample, found, data))


def _flaw(sample: _Sample, found: list[str], data: DataConfig) -> tuple[str, str] | None:
    if not found:
        there = ", ".join(sample.endings)
        return "no_image", f"has no member for data.image_column={data.image_column!r} (there: {there})"
    if len(found) > 1:
        return "several_images", f"has {', '.join(found)}; name one of them with data.image_column"
    return None


def _value(sample: _Sample, column: str) -> Any:
    """A member as text, else a field of the json member."""
    if column == "__key__":
        return sample.key
    if column in sample.content:
        return sample.content[column].decode(errors="replace")
    return _fields(sample).get(column)


def _fields(sample: _Sample) -> dict[str, Any]:
    try:
        found = json.loads(sample.content.get("json", b"{}"))
    except ValueError as error:
        sample.flaw = sample.flaw or ("json", f"its json member cannot be read ({error}); write it again")
        return {}
    return found if isinstance(found, dict) else {}


FORMAT = Format((".tar",), _sources, _check, _rows)
