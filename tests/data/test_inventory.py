"""Which files count, how what is left out is told, and that one data set has one name and one version."""

import os
import re
from dataclasses import replace

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concept_trak import UserError
from concept_trak.audit.plan import shards
from concept_trak.audit.resolve import resolve
from concept_trak.config import AuditConfig, DataConfig, ModelConfig
from concept_trak.data.files import canonical_uri, list_files, version
from concept_trak.data.inventory import LeftOut, LeftOutCounts, describe_left_out, hive_columns, matches, split_of
from concept_trak.data.sample import samples
from concept_trak.data.survey import list_sources, survey
from tests.data import files
from tests.data.files import write
from tests.data.inputs import labelled, put_file


def test_what_is_left_out_is_told_in_one_line():
    counts = LeftOutCounts()
    for name in ("c.jfif", "a.jfif", "b/d.jfif", "e.jfif"):
        counts.add("file", "ending .jfif", name)
    counts.add("file", "with hidden names", ".x\udce9")
    assert counts.left_out() == (
        LeftOut("file", "ending .jfif", 4, ("c.jfif", "a.jfif", "b/d.jfif")),
        LeftOut("file", "with hidden names", 1, (".x\\udce9",)),
    )
    assert describe_left_out(counts.left_out()) == (
        "left out: 4 files ending .jfif (c.jfif, a.jfif, b/d.jfif, ...); 1 file with hidden names (.x\\udce9)"
    )
    assert describe_left_out(()) == ""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("train-00000-of-00002.parquet", "train"), ("data/validation-0.tar", "validation"),
        ("val2017/1.jpg", "validation"), ("split=test/0.parquet", "test"), ("dev/train-0.tar", "validation"),
        ("x/wit_training_3.tar", "train"),
        ("eval.parquet", "test"), ("latest.parquet", ""), ("contest/0.parquet", ""), ("part-0.parquet", ""),
        ("train_images/a.png", "train"), ("test tube/a.png", ""), ("testing/a/b.tar", "test"),
    ],
)  # fmt: skip
def test_the_split_that_a_path_names(path, expected):
    assert split_of(path) == expected


def test_the_name_of_a_picture_is_no_split():
    assert split_of("cats/test.png", by_file_name=False) == ""


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.jpg", "a/b.jpg", True), ("*.jpg", "a.jpg/b.png", False), ("a/*.jpg", "a/b.jpg", True),
        ("a/*.jpg", "a/c/b.jpg", False), ("a/**/*.jpg", "a/c/d/b.jpg", True), ("**/b.jpg", "b.jpg", True),
        ("train-*", "train-0.parquet", True), ("[ab].jpg", "c.jpg", False), ("./a/*.jpg", "a/b.jpg", True),
    ],
)  # fmt: skip
def test_patterns_of_files(pattern, path, expected):
    assert matches(path, pattern) is expected


def test_folders_that_name_columns():
    assert hive_columns("label=d%20og/x/year=2020/a=b.parquet") == {"label": "d og", "year": "2020"}
    assert hive_columns("label=__HIVE_DEFAULT_PARTITION__/a.parquet") == {"label": None}
    assert hive_columns("a.parquet") == hive_columns("=x/a.parquet") == {}


def test_a_pattern_of_pictures_keeps_their_texts_and_leaves_out_the_others(tmp_path):
    for name in ("a.jpg", "b.png"):
        labelled(tmp_path, name)
        put_file((tmp_path / name).with_suffix(".txt"), "a caption")
    surveyed = survey(DataConfig(str(tmp_path), caption_column="txt", files="*.jpg"))
    assert [str(entry) for entry in surveyed.left_out] == [
        "1 file not of data.files=*.jpg", "1 file of text without an image"
    ]  # fmt: skip


def spellings(root) -> list[str]:
    os.symlink(root / "data", root / "link")
    return [
        f"{root}/data", f"{root}/data/", f"file://{root}/data", f"file://{root}/data/", f"{root}/./data",
        f"{root}/data/../data", f"{root}/link", f"{root}/link/", f"file://{root}/link", f"{root}//data",
    ]  # fmt: skip


def test_one_data_set_has_one_feature_set_however_it_is_spelled(tmp_path, monkeypatch):
    """Ids, shards, and the settings that a fingerprint is made of are equal."""
    for name in ("a.parquet", "x/b.parquet"):
        write(tmp_path / "data" / name, files.rows(3))
    config = AuditConfig(model=ModelConfig("m"), data=DataConfig("x"), methods={}, concepts=())
    monkeypatch.setattr(AuditConfig, "complete", lambda self: self)
    monkeypatch.chdir(tmp_path)
    seen = set()
    for uri in [*spellings(tmp_path), "data", "./data/", "link"]:
        data = resolve(replace(config, data=DataConfig(uri))).data
        plan = shards(survey(data).sources, 2)
        ids = tuple(row.id for shard in plan for row in samples(shard, data, 4) if not hasattr(row, "reason"))
        seen.add((data.uri, tuple(shard.name for shard in plan), ids))
    ((uri, names, ids),) = seen
    assert uri == str(tmp_path / "data")
    assert len(names) == 4
    assert ids[0] == "a.parquet:0"


def test_addresses_elsewhere_lose_the_slash_alone():
    assert canonical_uri("s3://bucket/train/") == canonical_uri("s3://bucket/train") == "s3://bucket/train"
    assert canonical_uri("https://host/folder/") == "https://host/folder/", "servers tell the two apart"
    assert canonical_uri("zip://a/::/b.zip") == "zip://a/::/b.zip"
    assert canonical_uri("") == ""
    assert canonical_uri("/a/../b", resolve_links=False) == "/b"


def test_the_version_of_a_linked_file_is_that_of_what_it_names(tmp_path):
    """As in the cache of the Hub, where every file is a link."""
    put_file(tmp_path / "blobs/1", b"one")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.png").symlink_to("../blobs/1")
    before = {name: version(info) for name, info in list_files(str(tmp_path / "data")).files.items()}
    fs = fsspec.filesystem("file")
    assert before == {name: version(fs.info(name)) for name in before}, "planned and opened versions differ"
    put_file(tmp_path / "blobs/1", b"two")
    os.utime(tmp_path / "blobs/1", ns=(1, 1))
    assert before != {name: version(info) for name, info in list_files(str(tmp_path / "data")).files.items()}


def test_a_digest_stands_in_for_a_time_that_is_not_there():
    assert version({"size": 3, "blob_id": "abc"}) == "3-abc"
    assert version({"size": 3, "ETag": '"abc"', "mtime": 5}) == "abc"
    assert version({"size": 3, "mtime": 5, "blob_id": "abc"}) == "3-5", "versions of before would change"
    with pytest.raises(UserError, match=r"no etag and no modification time of x, so that a changed file"):
        version({"size": 3, "name": "x"})


def test_a_folder_that_nobody_may_list_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a/b.parquet", files.rows(1))

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("concept_trak.data.files.os.scandir", denied)
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))} cannot be listed \(Permission denied\); make it"):
        list_sources(DataConfig(str(tmp_path)))


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(st.text(max_size=12), st.sampled_from(["", "*", "**/", "[", "a/"]))
def test_any_pattern_and_any_name_give_an_answer(name, start):
    assert matches(name.replace("/", "") or "x", start + name) in (True, False)
    assert split_of(name) in ("", "train", "validation", "test")
