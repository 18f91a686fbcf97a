"""Shards and groups of shards: names that stay, and groups that stay, when the data set grows."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concept_trak.audit.plan import group_name, groups, shards
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


def test_groups_cover_all_shards_in_order():
    plan = shards(synthetic(), 64)
    cutting = groups(plan)
    assert [shard for group in cutting for shard in group] == plan
    assert all(cutting)
    assert 80 <= len(cutting) <= 180, f"{len(cutting)} groups of 2,000 shards; about one in sixteen ends a group"
    assert len({group_name(group) for group in cutting}) == len(cutting)
    assert groups([]) == []


@pytest.mark.parametrize(
    "where", ["s3://bucket/train-00000a.parquet", "s3://bucket/train-00051.parquet", "s3://bucket/z.parquet"]
)
def test_growth_by_a_file_leaves_other_shards_and_nearly_all_groups(where):
    """A file of 3 shards in front, in the middle, at the end: the groups at its two borders may change."""
    old = synthetic()
    grown = sorted([*old, Source(where, "etag", 150)], key=lambda s: s.uri)
    assert set(names(old)) <= set(names(grown))
    assert len(names(grown)) == 2003
    before, after = ({group_name(g) for g in groups(shards(s, 64))} for s in (old, grown))
    assert len(before - after) <= 1, "a new file touches at most the one group it falls into"
    assert len(after - before) <= 4, f"{len(after - before)} of {len(after)} Gram groups must be summed again"


def test_a_lost_or_changed_file_leaves_nearly_all_groups():
    old = synthetic()
    ends = sum(int(s.hash, 16) % 16 == 0 for s in shards([old[20]], 64))
    for other in (old[:20] + old[21:], [*old[:20], replace(old[20], version="new"), *old[21:]]):
        before, after = ({group_name(g) for g in groups(shards(s, 64))} for s in (old, other))
        assert len(before - after) <= ends + 1, "groups without a shard of that file changed"


def test_a_group_is_named_by_its_shards_in_order():
    plan = shards(synthetic(), 64)[:4]
    assert group_name(plan) == group_name(list(plan))
    assert len({group_name(g) for g in (plan, plan[:3], plan[1:], plan[::-1])}) == 4
