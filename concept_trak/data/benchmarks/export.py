"""A published data set as Parquet files like anyone's: its image files as they are, captioned and labelled."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak import UserError

ROWS = 500
"""Rows of a file: about 50 MB of photographs."""


@dataclass(frozen=True)
class Picture:
    """One training image by its file."""

    id: str
    file: Path
    caption: str
    labels: dict[str, str] = field(default_factory=dict)


def export_parquet(folder: Path, pictures: Sequence[Picture], settings: dict[str, Any]) -> None:
    """All pictures, in order, as `part-<n>.parquet` of columns id, image, caption and the labels'.

    A file that is there is left as it is, so that its version stays and a killed run continues where it stopped;
    `dataset.json` has the settings that the folder was made from.

    Raises:
        UserError: the folder was made from something else, there are no pictures, or a file is missing.
    """
    if not pictures:
        raise UserError(f"{folder} would hold no pictures; nothing in the data set fits what was asked for")
    folder.mkdir(parents=True, exist_ok=True)
    _made_from(folder / "dataset.json", {**settings, "rows": len(pictures)})
    for number, first in enumerate(range(0, len(pictures), ROWS)):
        block = pictures[first : first + ROWS]
        path = folder / f"part-{number:05d}.parquet"
        if not path.exists():
            out = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(list(_rows(block)), _schema(block[0])), out, row_group_size=64)
            write_whole(path, out.getvalue())


def _made_from(path: Path, settings: dict[str, Any]) -> None:
    ours = json.dumps(settings, indent=1, sort_keys=True)
    if not path.exists():
        write_whole(path, ours.encode())
    elif path.read_text() != ours:
        raise UserError(f"{path.parent} was made from other settings (its dataset.json says which); give another out=")


def _rows(pictures: Sequence[Picture]) -> Iterator[dict[str, Any]]:
    for picture in pictures:
        try:
            data = picture.file.read_bytes()
        except OSError as error:
            raise UserError(f"{picture.file} cannot be read ({error}); is the data set whole?") from None
        image = {"bytes": data, "path": picture.file.name}
        yield {"id": picture.id, "image": image, "caption": picture.caption, **picture.labels}


def _schema(first: Picture) -> pa.Schema:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kinds = {"id": pa.string(), "image": image, "caption": pa.string(), **dict.fromkeys(first.labels, pa.string())}
    return pa.schema(kinds)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one step, so that a killed run leaves no half of it under its name."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def at(root: Path, *names: str) -> Path:
    """The first of the names that is there.

    Raises:
        UserError: none is.
    """
    path = next((root / name for name in names if (root / name).exists()), None)
    if path is None:
        raise UserError(f"{root} has none of {', '.join(names)}; expected the data set as it was published")
    return path


def within(root: Path, name: str) -> Path:
    """The file that a list names, below `root`.

    Raises:
        UserError: the name leads out of it: a list from elsewhere must not say which files of this machine are read.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{name!r} leads out of {root}; a published list names files below it, so get it again")
    return root / name
