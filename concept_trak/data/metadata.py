"""Metadata files of image folders, as Hugging Face's imagefolder has them: fields of each image, by its name.

`metadata.jsonl`, `metadata.csv` or `metadata.parquet`, in any case; `file_name` is the image's path, relative to that
file.
"""

import csv
import io
import posixpath
from collections.abc import Iterator
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak import UserError
from concept_trak.data.files import Files
from concept_trak.data.text import decode_text, one_line, parse_json

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
OF_KOHYA = ("metadata.json", "meta_cap.json", "meta_cap_dd.json", "meta_clean.json", "meta_lat.json")
"""Names of kohya's files, which hold one object with a key for each image. They are not read."""
MOST_BYTES = 1 << 30
"""Of one file: it is read whole."""


def is_metadata(name: str) -> bool:
    return posixpath.basename(name).lower() in METADATA


def read_metadata(fs: Any, files: Files) -> dict[str, dict[str, Any]]:
    """The fields of each image that the files name; of several files the one nearest to an image counts.

    Raises:
        UserError: a file cannot be read, two lie in one folder, or an entry has no image or one that has an entry.
    """
    fields: dict[str, dict[str, Any]] = {}
    folders: dict[str, str] = {}
    for name in sorted(filter(is_metadata, files), key=lambda n: n.count("/")):
        folder = posixpath.dirname(name)
        if (other := folders.setdefault(folder, name)) != name:
            raise UserError(
                f"{folder} has {posixpath.basename(other)} and {posixpath.basename(name)}; keep one of them"
            )
        if files[name]["size"] > MOST_BYTES:
            raise UserError(f"{name} has {files[name]['size']} bytes; expected at most {MOST_BYTES}")
        fields |= _by_image(name, _entries(name, fs.cat_file(name)))
    return _as_listed(fields, files)


def _as_listed(fields: dict[str, dict[str, Any]], files: Files) -> dict[str, dict[str, Any]]:
    """The fields under the names of the files: a Mac writes an accent as a character of its own, metadata may not."""
    if not (missing := fields.keys() - files.keys()):
        return fields
    listed = {normalize("NFC", name): name for name in files.keys() - fields.keys()}
    return {listed.get(normalize("NFC", n), n) if n in missing else n: entry for n, entry in fields.items()}


def _by_image(name: str, entries: list[Any]) -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{name}, entry {number}, has no file_name; expected the image's name, relative to it")
        if None in entry:  # where the csv module puts what no column has a name for
            raise UserError(f"{name}, entry {number}, has more values than there are columns; quote those with commas")
        image = _image_path(posixpath.dirname(name), entry.pop("file_name"))
        if image in fields:
            raise UserError(f"{name}, entry {number}, names {image} a second time; keep one of the entries")
        fields[image] = entry
    return fields


def _image_path(folder: str, file_name: str) -> str:
    """`./a.png` and `sub\\\\a.png` as the listing has them; a path that leads out of the folder stays as it is."""
    relative = posixpath.normpath(file_name.replace("\\", "/"))
    outside = relative.startswith(("../", "/")) or relative == ".."
    return f"{folder}/{file_name if outside else relative}"


def _entries(name: str, content: bytes) -> list[Any]:
    try:
        if name.lower().endswith(".parquet"):
            return pq.ParquetFile(io.BytesIO(content)).read(use_threads=False).to_pylist()
        if name.lower().endswith(".csv"):
            return list(csv.DictReader(io.StringIO(_text(name, content), newline=""), strict=True))
    except (ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise UserError(f"{name} cannot be read ({one_line(error)}); write it again, in UTF-8") from None
    return list(_json_lines(name, _text(name, content)))


def _json_lines(name: str, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028 as it is
        if line.strip():
            yield parse_json(line, f"{name}, line {number}")


def _text(name: str, content: bytes) -> str:
    return decode_text(content, name, MOST_BYTES)
