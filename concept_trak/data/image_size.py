"""The size of an image, from the first bytes of its file and without a decoder.

Decoders are not used, because opening a file takes them 10 to 20 us, and that of WebP needs the whole file.
"""

import io
from struct import unpack_from
from typing import Any, cast

from fsspec.implementations.local import LocalFileOpener

from concept_trak.data.files import LookAheadCache

HEAD_BYTES = 2 << 10
"""Bytes that are read at a time. Nearly every file has its size in the first ones; a JPEG may have metadata before."""
METADATA_BYTES = 1 << 20
"""Metadata of a JPEG that are passed over."""
LARGEST = (1 << 31) - 1
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn
ALONE = frozenset([0x01, *range(0xD0, 0xD9)])  # markers without a length: TEM, RSTn, SOI
ENDS = frozenset([0xD9, 0xDA])  # EOI and SOS: no frame header comes behind them


def image_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels that a JPEG, PNG or WebP file states; EXIF orientation is not applied.

    Args:
        head: the first bytes of the file, as many as there are.

    Returns:
        The size; None for another format, or if these bytes do not have it.
    """
    size = None
    if head.startswith(JPEG):
        size, _ = _jpeg_size(head, 2)
    elif head.startswith(PNG):
        size = _png_size(head)
    elif head.startswith(b"RIFF"):
        size = _webp_size(head)
    return _checked(size)


def _checked(size: tuple[int, int] | None) -> tuple[int, int] | None:
    return size if size and 0 < size[0] <= LARGEST and 0 < size[1] <= LARGEST else None


def _jpeg_size(head: bytes, place: int) -> tuple[tuple[int, int] | None, int]:
    """The size in the first frame header: ITU-T T.81, B.1.1 and B.2.2.

    Args:
        head: bytes of the file.
        place: of a marker in them.

    Returns:
        (size, the place of the next marker to look at); 0 stands for that place where no frame header can follow.
    """
    last = len(head) - 9
    while place <= last and head[place] == 0xFF:
        marker = head[place + 1]
        if marker in FRAMES:
            height, width = unpack_from(">HH", head, place + 5)
            return (width, height), place
        if marker in ENDS:
            return None, 0
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in ALONE:
            place += 2
        else:
            place += 2 + (head[place + 2] << 8) + head[place + 3]
    return None, place if place > last else 0


def _png_size(head: bytes) -> tuple[int, int] | None:
    """The size in the chunk IHDR, which is the first: PNG (third edition), 11.2.1."""
    if len(head) < 24 or head[12:16] != b"IHDR":
        return None
    width, height = unpack_from(">II", head, 16)
    return width, height


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """The size of the canvas, or of the only image: RFC 9649, 2.5 to 2.7 and 3.4; RFC 6386, 9.1."""
    if len(head) < 30 or head[8:12] != b"WEBP":
        return None
    match head[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(head[place : place + 3], "little") for place in (24, 27))
            return width + 1, height + 1
        case b"VP8L" if head[20] == 0x2F:
            (bits,) = unpack_from("<I", head, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 " if head[23:26] == b"\x9d\x01\x2a":
            width, height = unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def size_at_hand(file: Any, start: int, length: int) -> tuple[int, int] | None:
    """(width, height) of an image inside an open file, if they are known without a request to storage.

    Args:
        file: the file. Of one that is not local only those bytes are used that its cache has.
        start, length: the position of the image in the file, in bytes.
    """
    head = bytes_at_hand(file, start, min(length, HEAD_BYTES))
    if not head.startswith(JPEG):
        return image_size(head)
    size, place = _jpeg_size(head, 2)
    while size is None and 0 < place < min(length, METADATA_BYTES):
        head = bytes_at_hand(file, start + place, min(length - place, HEAD_BYTES))
        size, passed = _jpeg_size(head, 0)
        place = passed and place + passed
    return _checked(size)


def bytes_at_hand(file: Any, start: int, count: int) -> bytes:
    """Up to `count` bytes of an open file from `start` on: those that are there without a request to storage."""
    if isinstance(file, (LocalFileOpener, io.BytesIO)):
        file.seek(start)
        return cast(bytes, file.read(count))
    cache = getattr(file, "cache", None)
    if isinstance(cache, LookAheadCache) and cache.start <= start < cache.end:
        return bytes(memoryview(cast(bytes, cache.cache))[start - cache.start :][:count])
    return b""
