"""Folders of images, searched to their leaves. Each folder is one source.

Columns: `image`, `label` (the name of the image's own folder), `txt` (a file of the image's name beside it), and those
of a `metadata.jsonl` or `metadata.csv` in the image's folder or above it, whose `file_name` is relative to the file, as
Hugging Face's imagefolder has it. The listing is in the driver's memory: more than some million images belong in tars.
"""

import csv
import difflib
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fsspec

from concept_trak.config import DataConfig
from concept_trak.data.files import path_below, require_version, version
from concept_trak.data.format import Files, Format, SourceRow, named_columns
from concept_trak.data.shard import Shard, Source

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")
METADATA = ("metadata.jsonl", "metadata.csv")


class ImageEntry(NamedTuple):
    """One image: its name in its folder, its version, that of the text beside it, and what the metadata say of it.

    Without a version there is no such image, though the metadata name it.
    """

    name: str
    version: str
    text_version: str
    fields: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        """The text that versions of shards are a hash of: it stays as it is, whatever the class is called."""
        return f"Place({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"


def _sources(fs: Any, path: str, files: Files, data: DataConfig) -> list[Source]:
    """Every folder that holds images. A range of rows has the version of its images, texts and metadata."""
    told = _told(fs, files)
    images = {name for name in files if _is_image(name)}
    folders: dict[str, list[ImageEntry]] = {}
    for name in sorted(images | told.keys()):
        folder, _, base = name.rpartition("/")
        text = files.get(f"{posixpath.splitext(name)[0]}.txt")
        place = ImageEntry(
            base,
            version(files[name]) if name in images else "",
            version(text) if text else "",
            tuple(told.get(name, {}).items()),
        )
        folders.setdefault(folder, []).append(place)
    return [Source(fs.unstrip_protocol(f) + "/", "", len(places), places) for f, places in folders.items()]


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower().removeprefix(".") in IMAGES


def _told(fs: Any, files: Files) -> dict[str, dict[str, Any]]:
    """What metadata files say of each image; the nearest file above an image is the one that counts."""
    told: dict[str, dict[str, Any]] = {}
    for name in sorted((n for n in files if n.endswith(METADATA)), key=lambda n: n.count("/")):
        if all(f"{posixpath.dirname(name)}/{m}" in files for m in METADATA):
            raise ValueError(f"{posixpath.dirname(name)} has metadata.jsonl and metadata.csv; keep one of them")
        told |= _metadata(name, fs.cat_file(name))
    return told


def _metadata(name: str, content: bytes) -> dict[str, dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".csv"):
            lines: list[Any] = list(csv.DictReader(io.StringIO(text), strict=True))
        else:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name} cannot be read ({error}); write it again, in UTF-8") from None
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            raise ValueError(f"{name}, entry {number}, has no file_name; expected the image's name, relative to it")
        image = f"{posixpath.dirname(name)}/{line.pop('file_name')}"
        if image in found:
            raise ValueError(f"{name}, entry {number}, names {image} a second time; keep one of the entries")
        found[image] = line
    return found


def _check(source: Source, data: DataConfig) -> None:
    """That some image of the folder has every column that the settings name."""
    there = {"image", "label", *(c for place in source.places for c, _ in place.fields)}
    there |= {"txt"} if any(place.text_version for place in source.places) else set()
    for key, column in named_columns(data):
        if column not in there:
            near = difflib.get_close_matches(column, there, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{key}={column!r} is known of no image in {source.uri} (there: {', '.join(sorted(there))}){hint}"
            )


def _rows(shard: Shard, data: DataConfig, columns: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a shard, their ids the images' names below `data.uri`."""
    fs, folder = fsspec.core.url_to_fs(shard.source.rstrip("/"), use_listings_cache=False)
    prefix = path_below(shard.source.rstrip("/"), data.uri)
    for number, place in enumerate(shard.places, shard.first_row):
        name, values = f"{prefix}/{place.name}".lstrip("/"), {c: dict(place.fields).get(c) for c in columns}
        if not place.version:
            flaw = ("no_image", f"the metadata name {place.name}, which is not there; remove the entry")
            yield SourceRow(number, name, values, flaw)
            continue
        if "label" in columns and "label" not in dict(place.fields):
            values["label"] = posixpath.basename(folder)
        if "txt" in columns and place.text_version:
            text = f"{folder}/{posixpath.splitext(place.name)[0]}.txt"
            values["txt"] = _read(fs, text, place.text_version).decode(errors="replace")
        if data.image_column in columns:
            values[data.image_column] = {"bytes": _read(fs, f"{folder}/{place.name}", place.version)}
        yield SourceRow(number, name, values)


def _read(fs: Any, path: str, planned: str) -> bytes:
    require_version(fs, path, planned)
    return fs.cat_file(path)


FORMAT = Format(tuple(f".{ending}" for ending in IMAGES), _sources, _check, _rows, (".txt", *METADATA))
