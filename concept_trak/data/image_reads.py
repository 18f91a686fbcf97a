"""How often an image is read: once in the best case, more often where several shards share a page or a row group."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from concept_trak.data.shard import Source

WORTH_TIMES, WORTH_BYTES = 1.2, 1e9
MULTIPLES = range(1, 9)
"""Of the rows of a page that `describe_reads` tries for a shard."""
APART = 1 << 62
"""Rows of a row group where there are none."""


def image_reads(sources: Sequence[Source], shard_rows: int) -> float:
    """How often an image is read on average, when every shard is computed once.

    Args:
        sources: with their rows and their layouts.
        shard_rows: rows of a shard, from the start of each source.

    Returns:
        1 where each is read once; also where the layout is unknown.
    """
    return float(_rows_read(sources, shard_rows).sum()) / max(1, sum(source.rows for source in sources))


def _rows_read(sources: Sequence[Source], shard_rows: int) -> Float[np.ndarray, " s"]:
    """How many rows of each source all its shards read.

    A page is read whole by every shard that has a row of it. Where images have no pages of their own, a shard reads its
    row group from the group's start to its own last row.
    """
    layouts = [(s.rows, s.layout.group_rows, s.layout.page_rows) for s in sources]
    rows, group, page = np.array(layouts, np.int64).reshape(-1, 3).T
    first, source = _cut(rows, shard_rows)
    end = np.minimum(first + shard_rows, rows[source])
    streamed, alone = ((group > 0) & (page == 0))[source], (group == 0)[source]
    group, page = np.where(group, group, APART)[source], np.maximum(page, 1)[source]
    start = np.where(streamed, first // group * group, _page_start(first, group, page))
    last = _page_start(end - 1, group, page)
    stop = np.minimum(np.minimum(last + page, (last // group + 1) * group), rows[source])
    read = np.where(alone, end - first, np.where(streamed, end, stop) - start)
    return np.bincount(source, read, len(rows)).astype(np.float64)


def _cut(rows: Int64[np.ndarray, " s"], shard_rows: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The first row of every shard, and the number of its source."""
    shards = -(-rows // shard_rows)
    source = np.repeat(np.arange(len(rows)), shards)
    return (np.arange(len(source)) - (np.cumsum(shards) - shards)[source]) * shard_rows, source


def _page_start(
    row: Int64[np.ndarray, " n"], group: Int64[np.ndarray, " n"], page: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """The first row of the page with a row; pages begin anew with each row group."""
    begin = row // group * group
    return begin + (row - begin) // page * page


def describe_reads(sources: Sequence[Source], shard_rows: int, most_rows: int) -> str:
    """A line for people where images are read more than `WORTH_TIMES` and that is much; else "".

    Args:
        sources: with their rows and their layouts.
        shard_rows: rows of a shard.
        most_rows: of a shard whose part is not too large.
    """
    times = image_reads(sources, shard_rows)
    shares = _rows_read(sources, shard_rows) / np.maximum(1, [source.rows for source in sources])
    more = float(((shares - 1) * [source.layout.image_bytes for source in sources]).sum())
    if times <= WORTH_TIMES or more < WORTH_BYTES:
        return ""
    page = max(source.layout.page_rows for source in sources)
    group = max(source.layout.group_rows for source in sources)
    what = f"pages of {page:,} images" if page else f"row groups of {group:,} rows"
    how = "read whole" if page else "read from their start"
    sizes = [size for n in MULTIPLES if shard_rows < (size := n * (page or group)) <= most_rows]
    better = next((size for size in sizes if image_reads(sources, size) <= WORTH_TIMES), 0)
    larger = f", or use a new store with data.shard_rows={better}" if better else ""
    return (
        f"{what}, which shards of {shard_rows} rows {how}: every image is read {times:.3g} times, {more / 1e9:.3g} GB "
        f"more than the images have. Write the files with row_group_size={shard_rows}{larger}"
    )
