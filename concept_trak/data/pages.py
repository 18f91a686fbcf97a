"""The data pages of a Parquet column of bytes: their places in the file, and their values.

Arrow reads a row group from its start, so a row in the middle costs all rows before it. A page has about 1 MB and can
be read on its own if its place is known: `column_pages` finds the places from the page headers, and
`ColumnPages.values` decodes one page. See the format's specification, https://github.com/apache/parquet-format
(parquet.thrift, Encodings.md).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HEADER_BYTES = 16 << 10  # bytes of one read: the statistics in a header have up to 4 kB for each bound
DICTIONARY, DATA, DATA_V2 = 2, 0, 3
PLAIN, DICTIONARY_ENCODINGS = 0, (2, 8)
CODECS = {"UNCOMPRESSED": "", "SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd", "LZ4": "lz4_raw"}
Read = Callable[[int, int], bytes]
"""(first byte, one more than the last byte) of a file -> these bytes; fewer at the end of the file."""


class DataPage(NamedTuple):
    """A data page of a column.

    Attributes:
        offset: the first byte of its header in the file.
        length: the bytes of the header and the page.
        first_row: the number of its first row in the file.
        rows: the number of its rows.
    """

    offset: int
    length: int
    first_row: int
    rows: int


class _Header(NamedTuple):
    kind: int
    length: int
    compressed: int
    uncompressed: int
    values: int
    encoding: int
    levels: int
    compresses: bool


class PagesUnknownError(Exception):
    """This module cannot read the pages of a column. The caller reads whole row groups with Arrow instead."""


def readable_pages(column: pq.ColumnChunkMetaData, levels: pq.ColumnSchema) -> bool:
    """Whether each row of a column has one value, in an encoding and a compression that this module reads."""
    encodings = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
    return (
        column.physical_type == "BYTE_ARRAY"
        and levels.max_repetition_level == 0
        and column.compression in CODECS
        and encodings.issuperset(column.encodings)
    )


def column_pages(read: Read, column: pq.ColumnChunkMetaData, first_row: int) -> Iterator[DataPage]:
    """Every data page of a column chunk; only the headers are read.

    Args:
        read: reads the file.
        column: the chunk.
        first_row: the number of the row group's first row in the file.

    Raises:
        PagesUnknownError: a header cannot be read, or the pages differ from the chunk in their rows or bytes.
    """
    offset = at = column.dictionary_page_offset or column.data_page_offset
    end, block = offset + column.total_compressed_size, b""
    last_row = first_row + column.num_values
    while offset < end and first_row < last_row:
        if offset + HEADER_BYTES > at + len(block) and at + len(block) < end:  # a block that ends the chunk is whole
            block, at = read(offset, min(offset + HEADER_BYTES, end)), offset
        header = _header(block[offset - at :])
        length = header.length + header.compressed
        if header.kind in (DATA, DATA_V2):
            yield DataPage(offset, length, first_row, header.values)
            first_row += header.values
        offset += length
    if first_row != last_row or offset > end:
        raise PagesUnknownError("the pages and the column differ in their rows")


@dataclass(frozen=True)
class ColumnPages:
    """Decodes the pages of one column chunk.

    Args:
        column: the chunk.
        levels: the column in the schema.
    """

    column: pq.ColumnChunkMetaData
    levels: pq.ColumnSchema

    @property
    def start(self) -> int:
        """The first byte of the chunk in the file."""
        return self.column.dictionary_page_offset or self.column.data_page_offset

    @property
    def end(self) -> int:
        """One more than the last byte of the chunk."""
        return self.start + self.column.total_compressed_size

    def dictionary(self, read: Read) -> list[bytes]:
        """The values of the dictionary page."""
        data = read(self.start, self.column.data_page_offset)
        header = _header(data)
        body = self._unpacked(data[header.length : header.length + header.compressed], header.uncompressed)
        return _plain(memoryview(body), header.values)

    def values(self, data: bytes, read: Read) -> list[bytes | None]:
        """The values of one page, None for each null.

        Args:
            data: the page with its header.
            read: reads the file; called for the column's dictionary if the page needs it.

        Raises:
            PagesUnknownError: the page is damaged, or has an encoding that this module does not read.
        """
        header = _header(data)
        body, defined = self._body(header, data[header.length : header.length + header.compressed])
        count = header.values if defined is None else int(defined.sum())
        if header.encoding == PLAIN:
            values = _plain(body, count)
        elif header.encoding in DICTIONARY_ENCODINGS:
            entries = self.dictionary(read) if count else []
            values = [entries[i] for i in _run_lengths(body[1:], body[0], count)] if count else []
        else:
            raise PagesUnknownError(f"encoding {header.encoding}")
        if defined is None:
            return list(values)
        following = iter(values)
        return [next(following) if has_value else None for has_value in defined.tolist()]

    def _body(self, header: _Header, data: bytes) -> tuple[memoryview, np.ndarray | None]:
        """The encoded values of a page, and whether each row has a value; None if every row has one."""
        most = self.levels.max_definition_level
        if header.kind == DATA_V2:
            levels, rest = data[: header.levels], data[header.levels :]
            body = self._unpacked(rest, header.uncompressed - header.levels) if header.compresses else rest
            return memoryview(body), _defined(memoryview(levels), most, header.values)
        body = memoryview(self._unpacked(data, header.uncompressed))
        if not most:
            return body, None
        size = int.from_bytes(body[:4], "little")
        return body[4 + size :], _defined(body[4 : 4 + size], most, header.values)

    def _unpacked(self, data: bytes, size: int) -> bytes:
        codec = CODECS[self.column.compression]
        return pa.Codec(codec).decompress(data, size, asbytes=True) if codec and size else data


def _defined(data: memoryview, most: int, count: int) -> np.ndarray | None:
    if not most:
        return None
    return _run_lengths(data, most.bit_length(), count) == most


def _plain(body: memoryview, count: int) -> list[bytes]:
    """The values of encoding PLAIN: each has its length before it, in four bytes."""
    values, at = [], 0
    for _ in range(count):
        size = int.from_bytes(body[at : at + 4], "little")
        values.append(bytes(body[at + 4 : at + 4 + size]))
        at += 4 + size
    if at > len(body):
        raise PagesUnknownError("a page is shorter than its values")
    return values


def _run_lengths(data: memoryview, width: int, count: int) -> np.ndarray:
    """The numbers of encoding RLE: runs of one repeated number, and groups of eight numbers of `width` bits each."""
    parts, length, at = [np.zeros(0, np.int64)], 0, 0
    while length < count:
        head, at = _varint(data, at)
        if head & 1:
            bits = np.unpackbits(np.frombuffer(data[at : at + (head >> 1) * width], np.uint8), bitorder="little")
            parts.append(bits.reshape(-1, width).astype(np.int64) @ (1 << np.arange(width)) if width else
                         np.zeros(8 * (head >> 1), np.int64))  # fmt: skip
            at += (head >> 1) * width
        else:
            size = -(-width // 8)
            parts.append(np.full(head >> 1, int.from_bytes(data[at : at + size], "little"), np.int64))
            at += size
        if not len(parts[-1]):
            raise PagesUnknownError("a run of numbers is empty")
        length += len(parts[-1])
    return np.concatenate(parts)[:count]


def _header(data: bytes) -> _Header:
    """A page's header, in Thrift's compact protocol."""
    try:
        fields, length = _struct(data, 0)
        kind = fields[1]
        own: dict[int, Any] = fields.get({DATA: 5, DICTIONARY: 7, DATA_V2: 8}.get(kind, 0), {})
        encoding = own.get(4 if kind == DATA_V2 else 2, -1)
        levels = own.get(5, 0) + own.get(6, 0) if kind == DATA_V2 else 0
        compresses = own.get(7, True) if kind == DATA_V2 else True
        return _Header(kind, length, fields[3], fields[2], own.get(1, 0), encoding, levels, compresses)
    except (IndexError, KeyError, TypeError, struct.error) as error:
        raise PagesUnknownError(f"a page has no header ({error})") from error


def _struct(data: bytes | memoryview, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and the position after the struct."""
    fields, number = dict[int, Any](), 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: bytes | memoryview, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:  # true, false
            return kind == 1, at
        case 3:
            return data[at], at + 1
        case 4 | 5 | 6:
            return _zigzag(data, at)
        case 7:
            return struct.unpack_from("<d", data, at)[0], at + 8
        case 8:
            size, at = _varint(data, at)
            return None, at + size
        case 9 | 10:
            size, at = data[at] >> 4, at + 1
            inner = data[at - 1] & 15
            if size == 15:
                size, at = _varint(data, at)
            for _ in range(size):
                _, at = _value(data, at, inner)
            return None, at
        case 12:
            return _struct(data, at)
    raise TypeError(f"type {kind}")


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _zigzag(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
