"""Copies of the images that audits showed, so that a later audit of the same data does not read the data for them.

    sources/<data fingerprint>/images/<source>/<row>.parquet    one row: `COPY`

A copy belongs to a row of an index, and so to one version of its source. It may be removed at any time: the image is
then read from the data again.
"""

import hashlib
from dataclasses import dataclass

import pyarrow as pa

from concept_trak.store.part import Damaged
from concept_trak.store.store import Store
from concept_trak.store.tables import read_parquet, to_parquet

COPY = pa.schema(
    {"row": pa.int64(), "image": pa.large_binary(), "content": pa.string(), "bytes": pa.int64(), "sha256": pa.string()}
)
"""`bytes` and `sha256` are of the image; a copy of a latent has no image."""
REMEDY = "Remove it, or run `python -m jobs.verify repair=true`: it is made again when it is needed"


@dataclass(frozen=True)
class ImageCopy:
    """The copy of one row.

    Attributes:
        image: the bytes of the image file, as the data have them; None where the data have latents.
        content: the hash of a latent; empty where there is an image.
    """

    image: bytes | None = None
    content: str = ""


def copies_folder(index: str) -> str:
    """The folder with the copies of a source, by the name of its index file."""
    folder, _, file = index.rpartition("/")
    return f"{folder}/images/{file.removesuffix('.parquet')}"


def image_copy(index: str, row: int) -> str:
    """The file with the copy of a row, by the name of the index file and the number of the row in its source."""
    return f"{copies_folder(index)}/{row}.parquet"


def write_image_copy(store: Store, name: str, copy: ImageCopy) -> None:
    """Write the copy of a row if it is absent; `name` is that of `image_copy`."""
    digest = hashlib.sha256(copy.image or b"").hexdigest()
    values = (_row_of(name), copy.image, copy.content, len(copy.image or b""), digest)
    store.create(name, to_parquet(pa.Table.from_pylist([dict(zip(COPY.names, values, strict=True))], COPY)))


def read_image_copy(store: Store, name: str) -> ImageCopy:
    """The copy of a row.

    Raises:
        FileNotFoundError: there is none.
        Damaged: naming the file.
    """
    data = store.read(name)
    try:
        (row,) = read_parquet(data).cast(COPY).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"{store.uri}/{name} is damaged: {error}. {REMEDY}") from error
    image, digest = row["image"], hashlib.sha256(row["image"] or b"").hexdigest()
    if (row["row"], row["bytes"], row["sha256"]) != (_row_of(name), len(image or b""), digest):
        raise Damaged(f"{store.uri}/{name} is damaged: it is not the image that was written. {REMEDY}")
    if image is None and not row["content"]:
        raise Damaged(f"{store.uri}/{name} is damaged: it has no image. {REMEDY}")
    return ImageCopy(image, row["content"] or "")


def _row_of(name: str) -> int:
    return int(name.rpartition("/")[2].removesuffix(".parquet"))
