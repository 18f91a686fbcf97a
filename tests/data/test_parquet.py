"""Rows of Parquet shards: every one once, under an id that stays, as a sample or a reject."""

import errno
import os
from io import BytesIO
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.executor import Failure
from cluster.worker import classify
from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.format import format_of
from concept_trak.data.index import indexed_rows, label_values
from concept_trak.data.sample import Sample, samples, samples_by_id
from concept_trak.data.shard import cut
from concept_trak.data.survey import indexed_here, survey
from concept_trak.store.file_system import open_file_system
from concept_trak.store.part import Reject
from tests.data import files
from tests.data.files import plan, write

INTEGERS = {"id": pa.int64()}


def read(data: DataConfig, resolution: int = 4) -> list[Sample | Reject]:
    return [one for shard in plan(data) for one in samples(shard, data, resolution)]


def colour(sample: Sample | Reject) -> int:
    """The number that `files.rows` wrote into the image."""
    assert isinstance(sample, Sample)
    red, green, _ = ((sample.pixels[:, 0, 0] + 1) * 127.5).round().int().tolist()
    return red + 256 * green


def damage(path: Path, chunks: list[tuple[int, int]]) -> None:
    """Overwrite chunks of (row group, leaf column), where the footer does not tell."""
    metadata, content = pq.read_metadata(path), bytearray(path.read_bytes())
    for group, column in chunks:
        chunk = metadata.row_group(group).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(count=st.integers(1, 60), group=st.integers(1, 70), shard_rows=st.integers(1, 70))
def test_shards_cover_every_row_once_whatever_their_size(count, group, shard_rows):
    fs = fsspec.filesystem("memory")
    with fs.open("/cover/rows.parquet", "wb") as file:
        table = pa.table({"image": [str(n).encode() for n in range(count)], "caption": list(map(str, range(count)))})
        pq.write_table(table, file, row_group_size=group, data_page_size=8, write_batch_size=3)
    data = DataConfig(uri="memory://cover/rows.parquet")
    (source,) = indexed_here(data).sources
    parts = cut(source, shard_rows)
    assert [s.rows for s in parts[:-1]] == [shard_rows] * (len(parts) - 1), "only the last shard may be shorter"
    assert len({s.name for s in parts}) == len(parts)
    seen = [(row.number, row.caption) for shard in parts for row in indexed_rows(shard)]
    assert seen == [(n, str(n)) for n in range(count)], "a shard's rows are not those of its range"
    images = [image.content for shard in parts for image in format_of(shard, data).images(shard, data)]
    assert images == [str(n).encode() for n in range(count)], "a shard's images are not those of its range"


def test_only_the_row_groups_of_a_shard_are_read(tmp_path):
    """All other row groups are damaged on the disk, after the index was made."""
    path = Path(write(tmp_path / "a.parquet", files.rows(40), group=10))
    data = DataConfig(uri=str(path), id_column="id", shard_rows=5)
    shards, status = plan(data), path.stat()
    damage(path, [(group, column) for group in (0, 2, 3) for column in range(4)])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [s.id for shard in shards[2:4] for s in samples(shard, data, 4)] == [f"s{n}" for n in range(10, 20)]
    with pytest.raises(UserError, match=r"a\.parquet is damaged at byte \d+ .*; write it again"):
        list(samples(shards[0], data, 4))
    with pytest.raises(UserError, match=r"a\.parquet is damaged in row group 0 .*; write it again"):
        plan(data)


def test_labels_are_read_without_the_images(tmp_path):
    """The leaf of the image column with the bytes is damaged on the disk."""
    path = Path(write(tmp_path / "a.parquet", files.rows(6, shape=["circle", "square"] * 3)))
    damage(path, [(0, 1)])
    data = DataConfig(uri=str(path), id_column="id", label_columns=("shape", "caption", "id"))
    (shard,) = plan(data)
    expected = {
        f"s{n}": {"shape": ["circle", "square"][n % 2], "caption": f"caption {n}", "id": f"s{n}"} for n in range(6)
    }
    assert dict(label_values(shard)) == expected


def test_a_sample_is_its_row_with_labels_that_may_repeat_other_columns(tmp_path):
    columns = {"row": ["x", "y", "z"], "number": [7, 8, 9]}
    path = write(tmp_path / "a.parquet", files.rows(3, **columns), kinds={"number": pa.int32()})
    data = DataConfig(uri=path, id_column="id", label_columns=("row", "number", "caption", "id"))
    for n, one in enumerate(read(data)):
        assert isinstance(one, Sample)
        assert (one.id, one.caption, one.row, colour(one)) == (f"s{n}", f"caption {n}", n, n)
        assert one.labels == {"row": "xyz"[n], "number": str(7 + n), "caption": f"caption {n}", "id": f"s{n}"}, (
            "a column that is named like one of ours was overwritten"
        )
    looked_up = list(samples_by_id(plan(data)[0], data, 4, ["s2", "s0", "elsewhere"]))
    images = files.rows(3)["image"]
    assert [(f.sample.id, f.original) for f in looked_up] == [(f"s{n}", images[n]["bytes"]) for n in (0, 2)]


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "memory:/{}", "memory:/{}/"])
def test_made_ids_are_unique_and_stay_when_files_are_added(tmp_path, form):
    uri = form.format(tmp_path)
    fs, root = open_file_system(uri)

    def put(name: str, count: int) -> None:
        local = write(tmp_path / "made" / name, files.rows(count))
        fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        fs.pipe_file(f"{root}/{name}", Path(local).read_bytes())
        Path(local).unlink()

    put("m.parquet", 3)
    put("sub/m.parquet", 3)
    data = DataConfig(uri=uri, shard_rows=2)
    before = {(one.id, colour(one)) for one in read(data)}
    assert {i for i, _ in before} == {f"{name}:{row}" for name in ("m.parquet", "sub/m.parquet") for row in range(3)}
    names = {shard.name for shard in plan(data)}
    put("a.parquet", 4)
    put("sub/z.parquet", 1)
    after = [(one.id, colour(one)) for one in read(data)]
    assert before <= set(after), "an id changed when files were added"
    assert names < {shard.name for shard in plan(data)}
    assert len({i for i, _ in after}) == len(after) == 11


def test_one_file_needs_no_name_in_its_ids(tmp_path):
    data = DataConfig(uri=write(tmp_path / "only.parquet", files.rows(2)))
    assert [one.id for one in read(data)] == ["rows:0", "rows:1"]


def test_ids_may_be_strings_or_integers_and_are_unique_over_all_files(tmp_path):
    write(tmp_path / "a.parquet", files.rows(3, id=[1, 2, 3]), kinds=INTEGERS)
    write(tmp_path / "b.parquet", files.rows(3, id=["4", "5", "1000"]))
    data = DataConfig(uri=str(tmp_path), id_column="id")
    survey(data)
    assert [one.id for one in read(data)] == ["1", "2", "3", "4", "5", "1000"]
    write(tmp_path / "c.parquet", files.rows(4, id=[7, 2, 5, 2]), kinds=INTEGERS)
    with pytest.raises(ValueError, match=r"id_column='id' is not unique: 2, 5 occur more than once \(in .*c\.pa"):
        survey(data)
    survey(DataConfig(uri=str(tmp_path)))


def test_an_empty_id_is_a_reject_that_is_named_by_its_row(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", files.rows(3, id=[name, "", "\n"]))
    data = DataConfig(uri=str(tmp_path), id_column="id")
    rows = read(data)
    rejects = [row for row in rows if isinstance(row, Reject)]
    assert [row.id for row in rows if not isinstance(row, Reject)] == ["a", "b"]
    assert [row.sample_id for row in rejects] == ["a.parquet:1", "a.parquet:2", "b.parquet:1", "b.parquet:2"]
    assert {(row.reason, row.message) for row in rejects} == {
        ("no_id", "id is empty; give the row an id, or leave data.id_column empty")
    }


def test_a_missing_caption_is_a_reject(tmp_path):
    captions = ["fine", None, "", " \n\t", "also fine"]
    data = DataConfig(uri=write(tmp_path / "a.parquet", files.rows(5, caption=captions)), id_column="id")
    seen = read(data)
    assert [one.reason if isinstance(one, Reject) else one.caption for one in seen] == [
        "fine", "no_caption", "no_caption", "no_caption", "also fine"
    ]  # fmt: skip
    reject = seen[1]
    assert isinstance(reject, Reject)
    assert (reject.sample_id, reject.row) == ("s1", 1)
    assert "give the image a caption" in reject.message


def test_a_source_that_changed_or_went_after_planning_stops_the_audit(tmp_path):
    data = DataConfig(uri=write(tmp_path / "a.parquet", files.rows(3)))
    (old,) = plan(data)
    write(tmp_path / "a.parquet", files.rows(4))
    with pytest.raises(UserError, match=rf"planned version {old.version}, now .*; start a new audit"):
        list(samples(old, data, 4))
    (new,) = plan(data)
    assert new.name != old.name, "another version is another shard, or old features would be taken for the new rows"
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"now gone; start a new audit"):
        list(samples(new, data, 4))


class Cable(BytesIO):
    """A file whose connection breaks when it is read, once the file system has trouble."""

    def read(self, size=-1):
        if Unplugged.trouble is not None:
            raise Unplugged.trouble
        return super().read(size)


class Unplugged(AbstractFileSystem):
    """Fault injection: a file system with one file of two row groups, that lists, opens, and fails to read."""

    protocol = "unplugged"
    trouble: Exception | None = None
    content = b""

    def ls(self, path, detail=True, **options):
        return [{"name": "data/a.parquet", "size": len(self.content), "type": "file", "mtime": 1}]

    def _open(self, path, *arguments, **options):
        return Cable(self.content)


@pytest.fixture
def unplugged(monkeypatch):
    """Breaks the connection to `unplugged://data` with the error it is given."""
    fsspec.register_implementation("unplugged", Unplugged, clobber=True)
    file = BytesIO()
    columns = {"image": [b"1", b"2", b"3", b"4"], "caption": ["a", "b", "c", "d"]}
    pq.write_table(pa.table(columns), file, row_group_size=2)
    monkeypatch.setattr(Unplugged, "content", file.getvalue())
    return lambda trouble: monkeypatch.setattr(Unplugged, "trouble", trouble)


def test_storage_that_fails_is_not_called_a_broken_file(unplugged):
    """While a file is indexed, and in the middle of a shard: it is tried again, not blamed on the user's data."""
    data = DataConfig(uri="unplugged://data")
    (shard,) = plan(data)
    reading = format_of(shard, data).images(shard, data)
    assert [next(reading).content, next(reading).content] == [b"1", b"2"]
    unplugged(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    for read in (lambda: next(reading), lambda: plan(data)):
        with pytest.raises(ConnectionResetError) as raised:
            read()
        assert classify(raised.value) is Failure.INFRASTRUCTURE, "given up after the first try"


def test_a_file_that_nobody_may_read_is_the_users_to_mend(unplugged):
    unplugged(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read \(.*denied\); make it readable, or remove it"):
        plan(DataConfig(uri="unplugged://data"))
