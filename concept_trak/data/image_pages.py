"""Where the images of a Parquet file are: the page of each, from the headers of pages alone."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from concept_trak.config import DataConfig
from concept_trak.data.format import Extent, Findings
from concept_trak.data.pages import ColumnPages, PagesUnknownError, column_pages, readable_pages
from concept_trak.data.shard import Layout


def image_extents(f: Any, file: pq.ParquetFile, data: DataConfig, findings: Findings) -> Iterator[Extent | None]:
    """The page of every row's image, as its rows come; None where Arrow has to read the row group from its start."""
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    first_row, page_rows, all_paged, size = 0, 0, True, _image_bytes(file, data)
    for group, rows in enumerate(groups):
        chunk, end = image_chunk(file, group, data), first_row + rows
        with suppress(PagesUnknownError):
            for page in column_pages(partial(read_between, f), chunk.column, first_row) if chunk else ():
                page_rows = max(page_rows, page.rows)
                findings.layout = Layout(max(groups), page_rows if all_paged else 0, size)
                for skip in range(min(page.rows, end - first_row)):
                    first_row += 1
                    yield Extent(page.offset, page.length, skip)
        if first_row < end:
            all_paged, findings.layout = False, Layout(max(groups), 0, size)
        yield from (None for _ in range(end - first_row))
        first_row = end


def image_chunk(file: pq.ParquetFile, group: int, data: DataConfig) -> ColumnPages | None:
    """The column chunk with the images' bytes; None where its pages cannot be read by themselves."""
    metadata = file.metadata.row_group(group)
    for i in range(metadata.num_columns):
        column = metadata.column(i)
        if column.path_in_schema in (data.image_column, f"{data.image_column}.bytes"):
            return ColumnPages(column, file.schema.column(i)) if readable_pages(column, file.schema.column(i)) else None
    return None


def _image_bytes(file: pq.ParquetFile, data: DataConfig) -> int:
    groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] == data.image_column)


def read_between(f: Any, start: int, end: int) -> bytes:
    """The bytes of a file from `start` up to `end`."""
    f.seek(start)
    return f.read(end - start)
