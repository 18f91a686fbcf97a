"""How often an image is read: the formula against bytes that are counted, and what people are told."""

import io
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec import AbstractFileSystem

from concept_trak.audit.index import facts_of
from concept_trak.config import DataConfig
from concept_trak.data import parquet
from concept_trak.data.format import format_of
from concept_trak.data.image_reads import describe_reads, image_reads
from concept_trak.data.shard import Layout, Source, cut, whole
from concept_trak.data.survey import indexed_here

WIDTH, ROWS = 600, 5000


class Wire(io.BytesIO):
    """A file that counts the bytes which are read of it, but for the footer at its end."""

    def read(self, size=-1):
        data, footer = super().read(size), int.from_bytes(Metered.content[-8:-4], "little")
        Metered.count += len(data) if self.tell() <= len(Metered.content) - 8 - footer else 0
        return data


class Metered(AbstractFileSystem):
    """A file system with one file."""

    protocol = "metered"
    content, count = b"", 0

    def ls(self, path, detail=True, **options):
        return [{"name": "data/a.parquet", "size": len(self.content), "type": "file", "mtime": 1}]

    def _open(self, path, *arguments, **options):
        return Wire(self.content)


@pytest.fixture
def measured(monkeypatch):
    """Write a column of images or of latents, and read it shard by shard: the source, and how often it was read."""
    fsspec.register_implementation("metered", Metered, clobber=True)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 1 << 14)
    rng = np.random.default_rng(0)
    columns = {
        "image": [rng.bytes(WIDTH) for _ in range(ROWS)],
        "latents": pa.array(rng.random((ROWS, 1, 10, 15)).tolist(), pa.list_(pa.list_(pa.list_(pa.float32())))),
    }

    def run(column: str, shard_rows: int, **options) -> tuple[Source, float]:
        out = io.BytesIO()
        table = pa.table({column: columns[column], "condition.text": [[0.0]] * ROWS, "caption": ["a"] * ROWS})
        pq.write_table(table, out, write_statistics=False, **options)
        monkeypatch.setattr(Metered, "content", out.getvalue())
        data = DataConfig("metered://data/a.parquet", image_column=column)
        (source,) = indexed_here(data).sources
        monkeypatch.setattr(Metered, "count", 0)
        for shard in cut(source, shard_rows):
            assert sum(image.content is not None for image in format_of(shard, data).images(shard, data)) == shard.rows
        return source, Metered.count / (ROWS * WIDTH)

    return run


CASES = {
    "as pyarrow writes it": (64, {"data_page_size": 1 << 16, "dictionary_pagesize_limit": 1 << 16}),
    "a multiple of its pages": (1024, {"data_page_size": 1 << 16, "dictionary_pagesize_limit": 1 << 16}),
    "no multiple": (1000, {"data_page_size": 1 << 16, "dictionary_pagesize_limit": 1 << 16}),
    "row groups of the shard's rows": (64, {"row_group_size": 64}),
    "row groups that cut pages": (500, {"row_group_size": 1500, "data_page_size": 1 << 16, "use_dictionary": False}),
    "small pages": (64, {"data_page_size": 1 << 12, "write_batch_size": 4, "use_dictionary": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_what_is_read(measured, case):
    shard_rows, options = CASES[case]
    source, times = measured("image", shard_rows, **options)
    assert image_reads([source], shard_rows) == pytest.approx(times, rel=0.1)


def test_shards_of_whole_pages_read_the_file_once(measured):
    """As pyarrow writes a file by default, but for the size of its pages, which hold 1,024 images of 1 kB and more."""
    options = CASES["as pyarrow writes it"][1]
    source, times = measured("image", 1024, **options)
    assert source.layout[:2] == (ROWS, 1024)
    assert times < 1.1
    assert describe_reads([source], 64, 20_000) == "", "a small file may be read often"
    source = replace(source, layout=Layout(ROWS, 1024, 10**9))
    note = describe_reads([source], 64, 20_000)
    assert note.startswith(
        "pages of 1,024 images, which shards of 64 rows read whole: every image is read 15.8 times, 14.8 GB more"
    )
    assert note.endswith("Write the files with row_group_size=64, or use a new store with data.shard_rows=1024")
    assert describe_reads([source], 1024, 20_000) == ""
    assert "new store" not in describe_reads([source], 64, 1000), "a part of so many rows would be too large"


@pytest.mark.parametrize(
    ("column", "options", "chosen", "most"),
    [
        ("image", CASES["as pyarrow writes it"][1], range(0, ROWS, 9), 1.05),
        ("image", CASES["as pyarrow writes it"][1], range(2048, 3072, 9), 0.22),
        ("image", CASES["row groups that cut pages"][1], range(0, ROWS, 9), 1.05),
        ("latents", {"row_group_size": 1000, "use_dictionary": False, "compression": "none"}, [3, 999, 3000], 0.5),
    ],
    ids=["every page", "one page", "row groups", "latents"],
)
def test_rows_that_lie_together_are_read_once(measured, column, options, chosen, most):
    """Some hundred samples of a page that a report shows cost their pages once, and not each a page."""
    source, _ = measured(column, 1024, **options)
    data, shard = DataConfig("metered://data/a.parquet", image_column=column), whole(source)
    Metered.count = 0
    images = [image.content for image in format_of(shard, data).chosen_images(shard, data, list(chosen))]
    assert Metered.count <= most * ROWS * WIDTH
    if column == "image":
        every = [image.content for image in format_of(shard, data).images(shard, data)]
        assert images == [every[row] for row in chosen]
    else:
        alone = [next(format_of(shard, data).images(shard.rows_from(row, 1), data)).content for row in chosen]
        assert all(torch.equal(x.latent, y.latent) for x, y in zip(images, alone, strict=True))


@pytest.mark.parametrize(("shard_rows", "group"), [(500, 5000), (500, 1000), (500, 500)])
def test_latents_are_read_from_the_start_of_their_row_group(measured, shard_rows, group):
    source, times = measured(
        "latents", shard_rows, row_group_size=group, data_page_size=1 << 14, use_dictionary=False, compression="none"
    )
    assert source.layout[:2] == (group, 0)
    assert ROWS * WIDTH < source.layout.image_bytes < 1.3 * ROWS * WIDTH
    expected = image_reads([source], shard_rows)
    assert expected == (group / shard_rows + 1) / 2
    assert times == pytest.approx(expected, rel=0.25), "levels and blocks of reading are beside the values"
    note = describe_reads([replace(source, layout=source.layout._replace(image_bytes=10**10))], shard_rows, 20_000)
    assert note == "" or note.startswith(
        f"row groups of {group:,} rows, which shards of 500 rows read from their start"
    )


def test_sources_of_many_layouts_are_added_up():
    sources = [
        Source("a", "v", 4096, layout=Layout(4096, 1024)),
        Source("b", "v", 4096),
        Source("c", "v", 0, layout=Layout(10, 10)),
        Source("d", "v", 64, layout=Layout(64, 1)),
    ]
    assert image_reads(sources[:1], 64) == 16
    assert image_reads(sources, 64) == (16 * 4096 + 4096 + 64) / (2 * 4096 + 64)
    assert image_reads([], 64) == 0
    assert describe_reads(sources[1:], 64, 20_000) == ""


def test_a_record_written_before_has_no_layout():
    record = {"uri": "a", "version": "v", "first_row": 0, "rows": 5, "vocabulary": 1, "bytes": 9, "sha256": "0" * 64,
              "left_out": [], "unread": [], "lacking": ""}  # fmt: skip
    assert facts_of(record).layout == Layout()
    assert facts_of(record | {"layout": [7, 3, 2]}).layout == Layout(7, 3, 2)
