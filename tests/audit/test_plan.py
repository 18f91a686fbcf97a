"""Shards: names that stay when the data set grows, and shards read back from a plan."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concept_trak import UserError
from concept_trak.audit import index
from concept_trak.audit.index import IndexReader, open_data
from concept_trak.audit.mapper import serial
from concept_trak.audit.plan import read_shards, shards
from concept_trak.config import DataConfig
from concept_trak.data.benchmarks.synthetic import draw_labelled, write_synthetic
from concept_trak.data.shard import Shard, Source, cut
from concept_trak.store.sources import read_source_index, write_source_index
from concept_trak.store.store import Store


def synthetic(count: int = 50, rows: int = 2560) -> list[Source]:
    """2,000 shards of 64 rows, in files named as `datasets` names them, with every second number left free."""
    return [Source(f"s3://bucket/train-{2 * i:05d}.parquet", f"etag{i}", rows) for i in range(count)]


def names(found: list[Source], shard_rows: int = 64) -> list[str]:
    return [shard.name for shard in shards(found, shard_rows)]


def test_names_do_not_hang_on_position_nor_on_other_sources():
    found = synthetic()
    assert names(found[::-1], 64) == [n for s in found[::-1] for n in names([s])]
    assert set(names(found[3:5])) < set(names(found))
    assert len(set(names(found))) == len(shards(found, 64)) == 2000


@pytest.mark.parametrize(
    "other",
    [
        Shard("s3://bucket/b.parquet", "v", 0, 64),
        Shard("s3://bucket/sub/a.parquet", "v", 0, 64),
        Shard("s3://bucket/a.parquet", "w", 0, 64),
        Shard("s3://bucket/a.parquet", "v", 64, 64),
        Shard("s3://bucket/a.parquet", "v", 0, 63),
    ],
)
def test_source_version_and_range_name_a_shard(other):
    one = Shard("s3://bucket/a.parquet", "v", 0, 64)
    assert one.name == Shard("s3://bucket/a.parquet", "v", 0, 64).name == "a-000000000-" + one.hash[:12]
    assert other.name != one.name
    assert "/" not in other.name


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 500), st.integers(1, 100))
def test_shards_are_aligned_to_the_start_of_their_file(rows, shard_rows):
    parts = cut(Source("a.parquet", "v", rows), shard_rows)
    assert [row for s in parts for row in range(s.first_row, s.first_row + s.rows)] == list(range(rows))
    assert all(s.first_row % shard_rows == 0 for s in parts)


def plan_of(store, data):
    """The shards as an audit plans them, and the rows of its plan."""
    planned = shards(open_data(store, data, "text", serial).sources, data.shard_rows)
    return planned, [
        {"shard": s.name, "source": s.source, "version": s.version, "first_row": s.first_row, "rows": s.rows}
        for s in planned
    ]


def forget_sizes(store: Store, name: str) -> None:
    """Write an index as it was before it had sizes."""
    table = read_source_index(store, name).drop_columns(["width", "height"])
    store.delete(name)
    write_source_index(store, name, table)


def test_shards_of_files_come_back_without_a_listing(tmp_path, monkeypatch):
    write_synthetic(tmp_path / "shapes", 24, seed=0, files=2, resolution=16)
    store, data = Store(str(tmp_path / "store")), DataConfig(str(tmp_path / "shapes"), shard_rows=5)
    planned, rows = plan_of(store, data)
    monkeypatch.setattr("concept_trak.audit.plan.list_sources", lambda data: pytest.fail("the data were listed"))
    again = read_shards(store, data, rows)
    assert [(s, s.stored) for s in again] == [(s, s.stored) for s in planned]
    reader = IndexReader(store)
    assert reader(again[-1]).index_table.equals(reader(planned[-1]).index_table)


def test_shards_of_a_folder_come_back_as_long_as_its_images_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "FOLDER_ROWS", 4)
    (tmp_path / "images").mkdir()
    for i in range(10):
        draw_labelled(0, i, resolution=16).image.save(tmp_path / f"images/{i}.png")
        (tmp_path / f"images/{i}.txt").write_text(f"number {i}")
    store = Store(str(tmp_path / "store"))
    data = DataConfig(str(tmp_path / "images"), caption_column="txt", shard_rows=3)
    planned, rows = plan_of(store, data)
    assert len({part.name for shard in planned for part in shard.stored}) == 3
    before, again = set(store.names("")), read_shards(store, data, rows)
    assert [(s, s.stored) for s in again] == [(s, s.stored) for s in planned]
    reader = IndexReader(store)
    captions = [text for shard in again for text in reader(shard).index_table["caption"].to_pylist()]
    assert captions == [f"number {i}" for i in range(10)]
    forget_sizes(store, planned[0].stored[0].name)
    mixed = [IndexReader(store)(shard).index_table for shard in again]
    assert mixed == [reader(shard).index_table for shard in again]
    assert all(table["width"].null_count == table.num_rows for table in mixed)
    os.utime(tmp_path / "images/9.png", (1, 1))
    with pytest.raises(UserError, match=r"images/ changed since the audit was planned"):
        read_shards(store, data, rows)
    assert set(store.names("")) == before, "an index was written"
