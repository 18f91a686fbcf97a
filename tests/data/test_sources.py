"""What a data set's address holds, and everything that can be wrong with it before a worker starts."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data.sample import samples
from concept_trak.data.shard import UNKNOWN, Source
from concept_trak.data.survey import survey
from tests.data import files
from tests.data.files import plan, sources, write


def test_files_in_nested_folders_are_found_by_name_and_only_data(tmp_path):
    for name in ("b.parquet", "a/train [1]*#.parquet", "a/b/c%20.parquet"):
        write(tmp_path / name, files.rows(2))
    for name in ("_tmp.parquet", ".a.parquet.crc", "a/.hidden.parquet", "readme.md"):
        (tmp_path / name).write_bytes(b"no data")
    listed = sources(str(tmp_path))
    assert [s.uri for s in listed] == [
        f"file://{tmp_path}/{n}" for n in ("a/b/c%20.parquet", "a/train [1]*#.parquet", "b.parquet")
    ]
    data = DataConfig(uri=str(tmp_path))
    assert len(survey(data).sources) == 3
    ids = [one.id for shard in plan(data) for one in samples(shard, data, 4)]
    assert ids == [
        "a/b/c%20.parquet:0",
        "a/b/c%20.parquet:1",
        "a/train [1]*#.parquet:0",
        "a/train [1]*#.parquet:1",
        "b.parquet:0",
        "b.parquet:1",
    ]


def test_a_missing_id_is_refused_with_its_file(tmp_path):
    write(tmp_path / "a.parquet", files.rows(2, id=["x", None]))
    with pytest.raises(
        ValueError, match=r"a\.parquet has rows without an id; fill them, or leave data\.id_column empty"
    ):
        survey(DataConfig(uri=str(tmp_path), id_column="id"))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"caption_column": "captoin"}, r"data\.caption_column='captoin' is not a column .*did you mean 'caption'\?"),
        ({"image_column": "picture"}, r"data\.image_column='picture' is not a column of .*there: id, image, caption"),
        ({"id_column": "uid"}, r"data\.id_column='uid' is not a column .*did you mean 'id'\?"),
        ({"label_columns": ("n", "nn")}, r"data\.label_columns='nn' is not a column .*did you mean 'n'\?"),
        ({"image_column": "caption"}, r"data\.image_column='caption' is string; expected struct<bytes: binary"),
        ({"caption_column": "n"}, r"data\.caption_column='n' holds int64; expected strings"),
        ({"id_column": "f"}, r"data\.id_column='f' holds double; expected strings or integers"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used_are_refused(tmp_path, settings_, message):
    values = files.rows(2, n=[1, 2], f=[0.5, 1.5])
    write(tmp_path / "a.parquet", values, kinds={"n": pa.int64(), "f": pa.float64()})
    with pytest.raises(ValueError, match=message):
        survey(DataConfig(uri=str(tmp_path), **settings_))


def test_a_column_that_only_one_file_lacks_is_found(tmp_path):
    write(tmp_path / "a.parquet", files.rows(2))
    write(tmp_path / "b.parquet", {k: v for k, v in files.rows(2).items() if k != "caption"})
    with pytest.raises(ValueError, match=r"'caption' is not a column of .*b\.parquet"):
        survey(DataConfig(uri=str(tmp_path)))


def test_nothing_there_no_rows_and_no_parquet_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' does not exist; expected a file of training samples, or a folder"):
        sources(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds no .*\.parquet.* files"):
        sources(str(tmp_path))
    write(tmp_path / "empty.parquet", files.rows(0))
    with pytest.raises(ValueError, match=r"has 1 parquet files but no rows; point it at the data set"):
        survey(DataConfig(uri=str(tmp_path)))
    write(tmp_path / "full.parquet", files.rows(3))
    assert [s.rows for s in shards(survey(DataConfig(uri=str(tmp_path))).sources, 2)] == [2, 1], (
        "an empty file has no shard"
    )


@pytest.mark.parametrize(
    "content", [b"", b"no parquet", b"PAR1" + b"\xff" * 60 + b"\x20\0\0\0PAR1"], ids=["empty", "text", "footer"]
)
def test_what_is_no_parquet_file_is_named(tmp_path, content):
    write(tmp_path / "a.parquet", files.rows(3))
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"(?s)bad\.parquet is not a readable Parquet file .*; remove it from data\.uri"
    ):
        survey(DataConfig(uri=str(tmp_path)))


def test_a_file_has_one_name_and_version_however_it_is_addressed():
    with fsspec.filesystem("memory").open("/one/a.parquet", "wb") as file:
        pq.write_table(pa.table({"n": [1]}), file)
    first = sources("memory://one")
    assert first == sources("memory://one/") == sources("memory://one/a.parquet"), "one file is two sources"
    assert first == [Source("memory:///one/a.parquet", first[0].version, UNKNOWN)]
