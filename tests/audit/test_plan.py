"""Shards: names that stay when the data set grows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concept_trak.audit.plan import shards
from concept_trak.data.shard import Shard, Source, cut


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
