"""Folders of images, with their subfolders. Each folder is one source.

Columns: `image`, `label` (the name of the image's own folder), `txt` (a text file of the image's name in its folder),
and those of a metadata file in the image's folder or above it. The driver holds the listing in memory, so more than a
few million images belong in tars.
"""

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.decode import ENDINGS
from concept_trak.data.files import Files, Listing, path_below, require_version, version
from concept_trak.data.format import (
    Findings,
    Format,
    RowImage,
    SourceRow,
    known_columns,
    named_columns,
    require_columns,
    require_text,
)
from concept_trak.data.inventory import LeftOutCounts
from concept_trak.data.metadata import METADATA, OF_KOHYA, is_metadata, read_metadata
from concept_trak.data.shard import Shard, Source
from concept_trak.data.text import MOST_BYTES, decode_text, encodable, printable
from concept_trak.store.file_system import open_file_system


class ImageEntry(NamedTuple):
    """One image: its name in its folder, its version, that of its text file, and the fields of its metadata.

    An image that is only in the metadata has no version.
    """

    name: str
    version: str
    text_version: str
    fields: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        """The text whose hash is the version of a shard. It must never change, even if the class is renamed."""
        return f"Place({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"


def _sources(listing: Listing, files: Files, data: DataConfig, tally: LeftOutCounts) -> list[Source]:
    """Every folder that holds images. A range of rows has the version of its images, texts and metadata."""
    fields = read_metadata(listing.fs, files)
    images = {name for name in files if _is_image(name)}
    texts = {name for name in files if name.lower().endswith(".txt")}
    folders: dict[str, list[ImageEntry]] = {}
    for name in sorted(images | fields.keys()):
        folder, _, base = name.rpartition("/")
        if not encodable(folder):
            raise UserError(f"the name of the folder {printable(folder)} is not UTF-8; rename it")
        text = _text_of(name)
        texts.discard(text)
        entry = ImageEntry(
            name=base,
            version=version(files[name]) if name in images else "",
            text_version=version(files[text]) if text in files else "",
            fields=tuple(fields.get(name, {}).items()),
        )
        folders.setdefault(folder, []).append(entry)
    _leave_out(listing, files, images, texts, tally)
    return [
        Source(uri=listing.fs.unstrip_protocol(f) + "/", version="", rows=len(entries), places=entries)
        for f, entries in folders.items()
    ]


def _leave_out(listing: Listing, files: Files, images: set[str], texts: set[str], tally: LeftOutCounts) -> None:
    """Counts the files that accompany no image."""
    for name in sorted(texts):
        tally.add("file", "of text without an image", listing.relative(name))
    for name in files:
        if name not in images and not name.lower().endswith(".txt") and not is_metadata(name):
            remedy = ", as of kohya: write it as metadata.jsonl, with a file_name in each line"
            kohya = posixpath.basename(name).lower() in OF_KOHYA
            reason = f"ending {posixpath.splitext(name)[1].lower()}" + remedy * kohya
            tally.add("file", reason, listing.relative(name))


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower().removeprefix(".") in ENDINGS


def _text_of(name: str) -> str:
    return f"{posixpath.splitext(name)[0]}.txt"


def _rows(source: Source, data: DataConfig, findings: Findings) -> Iterator[SourceRow]:
    """The rows of a folder, or of a range of one; their ids are the images' names below `data.uri`."""
    if data.conditioning_image_column:
        raise UserError(
            "data.conditioning_image_column is read from Parquet and from tars, not from folders of images; write the "
            "data set as Parquet (in `datasets`: .to_parquet(...)) with a column of these images"
        )
    try:
        findings.unread += _unread(source, data)
    except UserError as error:  # the images of another folder may have the column
        findings.lacking = str(error)
    fs, folder = open_file_system(source.uri.rstrip("/"))
    prefix, columns = path_below(source.uri.rstrip("/"), data.uri), known_columns(data)
    for number, entry in enumerate(source.places, source.first_row):
        fields = dict(entry.fields)
        values = {c: fields.get(c) for c in columns}
        if "label" in columns and "label" not in fields:
            values["label"] = posixpath.basename(folder)
        flaw = _flaw(entry)
        if flaw is None and "txt" in values and entry.text_version:
            values["txt"], flaw = _text(fs, folder, entry)
        file = (printable(entry.name), entry.version)
        yield SourceRow(number, f"{prefix}/{entry.name}".lstrip("/"), values, flaw, file=file)


def _unread(source: Source, data: DataConfig) -> Iterable[str]:
    """The columns that no setting names, once some image of the folder has those that the settings name, and captions
    are text."""
    columns = dict.fromkeys(c for entry in source.places for c, _ in entry.fields)
    columns |= dict.fromkeys(["image", "label"])
    columns |= {"txt": None} if any(entry.text_version for entry in source.places) else {}
    unread = require_columns(data, sorted(columns), f"known of no image in {source.uri}")
    for key, column in named_columns(data):
        if key in ("data.caption_column", "data.other_captions") and data.captions != "class":
            require_text(key, column, [dict(e.fields).get(column) for e in source.places], source.uri)
    return unread - {"label"}


def _text(fs: Any, folder: str, entry: ImageEntry) -> tuple[str | None, tuple[str, str] | None]:
    """The text beside an image; or why it cannot be read."""
    text = _text_of(entry.name)
    content = _read(fs, f"{folder}/{text}", entry.text_version, MOST_BYTES + 1)
    try:
        return decode_text(content, text), None
    except UserError as error:
        return None, ("text", str(error))


def _images(shard: Shard, data: DataConfig) -> Iterator[RowImage]:
    """The images of the rows, each in its own file."""
    fs, folder = open_file_system(shard.source.rstrip("/"))
    for row in shard.index_table.select(["file", "file_version", "reason"]).to_pylist():
        usable = row["reason"] is None
        yield RowImage(_read(fs, f"{folder}/{row['file']}", row["file_version"]) if usable else None)


def _flaw(entry: ImageEntry) -> tuple[str, str] | None:
    if not encodable(entry.name):
        return "file_name", f"the name of {printable(entry.name)} is not UTF-8; rename it"
    if not entry.version and not _is_image(entry.name):
        return "no_image", f"the metadata name {entry.name}, whose ending is none of an image; remove the entry"
    if not entry.version:
        return "no_image", f"the metadata name {entry.name}, which is not there; remove the entry"
    return None


def _read(fs: Any, path: str, planned: str, most: int | None = None) -> bytes:
    require_version(fs, path, planned)
    return fs.cat_file(path, end=most)


FORMAT = Format(
    tuple(f".{ending}" for ending in ENDINGS),
    _sources,
    _rows,
    _images,
    companions=(".txt", *METADATA, *OF_KOHYA),
    split_in_name=False,
)
