"""Folders of images: captions from three places, one id for one image, and versions that see every change."""

import json
from pathlib import Path

import pytest
from PIL import Image

from concept_trak import UserError
from concept_trak.config import DataConfig
from concept_trak.data.folder import ImageEntry
from concept_trak.data.index import index_source, label_values
from concept_trak.data.sample import Sample, samples
from concept_trak.data.shard import Source, cut
from concept_trak.data.survey import indexed_here, list_sources, survey
from concept_trak.store.part import Reject
from tests.data.files import encoded, plan


def put(folder: Path, *names: str) -> None:
    """A grey picture under each name; its level is the number in the name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        level = int("".join(c for c in name if c.isdigit()))
        (folder / name).write_bytes(encoded(Image.new("RGB", (4, 4), (level,) * 3)))


def read(data: DataConfig) -> dict[str, str]:
    """Caption, or reason, by id."""
    survey(data)
    found = [one for shard in plan(data) for one in samples(shard, data, 4)]
    return {
        one.id if isinstance(one, Sample) else one.sample_id: one.caption if isinstance(one, Sample) else one.reason
        for one in found
    }


@pytest.mark.parametrize("shard_rows", [1, 2, 100])
def test_the_folders_name_is_a_label_or_the_caption(tmp_path, shard_rows):
    put(tmp_path, "cats/1.png", "cats/2.jpg", "dogs/old/3.WEBP", "dogs/4.png", ".6.png", ".old/7.png", "@eaDir/8.png")
    data = DataConfig(uri=str(tmp_path), caption_column="label", label_columns=("label",), shard_rows=shard_rows)
    assert read(data) == {"cats/1.png": "cats", "cats/2.jpg": "cats", "dogs/old/3.WEBP": "old", "dogs/4.png": "dogs"}
    labels = {i: found for shard in plan(data) for i, found in label_values(shard)}
    assert labels["dogs/old/3.WEBP"] == {"label": "old"}
    levels = [
        int(((s.pixels[0, 0, 0] + 1) * 127.5).round())
        for sh in plan(data)
        for s in samples(sh, data, 4)
        if isinstance(s, Sample)
    ]
    assert levels == [1, 2, 4, 3], "a picture came under another's id"


def test_captions_in_texts_beside_the_images(tmp_path):
    put(tmp_path, "a1.png", "b/2.png", "b/3.png")
    (tmp_path / "a1.txt").write_text("first")
    (tmp_path / "b/2.txt").write_text("second")
    assert read(DataConfig(uri=str(tmp_path), caption_column="txt")) == {
        "a1.png": "first",
        "b/2.png": "second",
        "b/3.png": "no_caption",
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_in_metadata_as_imagefolder_has_them(tmp_path, kind):
    """The nearest file counts; an entry without an image, or that names a place outside, is a reject."""
    put(tmp_path, "1.png", "b/2.png", "b/c/3.png", "4.png")
    tables = {
        "": [("1.png", "one"), ("b/2.png", "hidden"), ("9.png", "gone"), ("../1.png", "outside")],
        "b": [("2.png", "two"), ("c/3.png", "three")],
    }
    for folder, rows in tables.items():
        lines = [json.dumps({"file_name": n, "text": t, "size": 3}) for n, t in rows]
        if kind == "csv":
            lines = ["file_name,text,size", *(f"{n},{t},3" for n, t in rows)]
        (tmp_path / folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    data = DataConfig(uri=str(tmp_path), caption_column="text")
    found = read(data)
    assert {k: v for k, v in found.items() if ".." not in k} == {
        "1.png": "one", "4.png": "no_caption", "9.png": "no_image", "b/2.png": "two", "b/c/3.png": "three"
    }  # fmt: skip
    assert [reason for name, reason in found.items() if ".." in name] == ["no_image"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"file_name": "1.png", "text": "a"}\n{', r"metadata\.jsonl, line 2 is no readable JSON .*write it again"),
        ('{"text": "a"}', r"metadata\.jsonl, entry 1, has no file_name"),
        ('{"file_name": "1.png"}\n{"file_name": "1.png"}', r"entry 2, names .*1\.png a second time"),
        ('{"file_name": "1.png", "txet": "a"}', r"caption_column='text' is known of no image .*did you mean 'txet'"),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used_are_refused(tmp_path, content, says):
    put(tmp_path, "1.png")
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match=says):
        survey(DataConfig(uri=str(tmp_path), caption_column="text"))


def test_a_caption_that_is_no_text_is_a_reject(tmp_path):
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": 7}\n{"file_name": "2.png", "text": "a"}\n')
    data = DataConfig(uri=str(tmp_path), caption_column="text")
    bad, good = [one for shard in plan(data) for one in samples(shard, data, 4)]
    assert isinstance(bad, Reject)
    assert (bad.reason, bad.message) == ("caption_type", "text is 7, a int; expected text, or a list of texts")
    assert isinstance(good, Sample)


def test_a_shard_has_the_version_of_its_own_images_and_captions(tmp_path):
    """Another image, another caption, or an image more in the range is another shard; other folders keep theirs."""
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    for name in ("a/1", "a/2", "b/3"):
        (tmp_path / f"{name}.txt").write_text(name)
    data = DataConfig(uri=str(tmp_path), caption_column="txt", shard_rows=1)

    def names() -> list[str]:
        return [shard.name for shard in plan(data)]

    before = names()
    put(tmp_path, "c/4.png")
    assert names()[:3] == before
    (tmp_path / "a/2.txt").write_text("another caption")
    assert [x == y for x, y in zip(names(), before, strict=False)] == [True, False, True]
    (tmp_path / "b/3.png").write_bytes(encoded(Image.new("RGB", (5, 5))))
    assert [x == y for x, y in zip(names(), before, strict=False)] == [True, False, False]


def test_an_image_that_changed_after_planning_stops_the_audit(tmp_path):
    put(tmp_path, "1.png")
    (tmp_path / "1.txt").write_text("a")
    data = DataConfig(uri=str(tmp_path), caption_column="txt")
    (listed,) = list_sources(data).sources
    (shard,) = plan(data)
    (tmp_path / "1.txt").write_text("another")
    with pytest.raises(UserError, match=r"1\.txt changed while the audit ran"):
        index_source(listed, data)
    (tmp_path / "1.png").write_bytes(encoded(Image.new("RGB", (5, 5))))
    with pytest.raises(UserError, match=r"1\.png changed while the audit ran"):
        list(samples(shard, data, 4))


def test_files_of_two_formats_are_refused_until_one_is_named(tmp_path):
    put(tmp_path, "1.png")
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"files of several formats \(folder, webdataset\); say which with data\.format"
    ):
        indexed_here(DataConfig(uri=str(tmp_path)))
    assert [s.rows for s in list_sources(DataConfig(uri=str(tmp_path), format="folder")).sources] == [1]
    with pytest.raises(ValueError, match=r"data\.format='tarball' is not known; expected auto or one of: folder"):
        indexed_here(DataConfig(uri=str(tmp_path), format="tarball"))


def test_versions_of_folders_are_hashed_from_the_same_text_in_every_release():
    """The versions below were made by an earlier release; another one would compute all features anew."""
    entries = [
        ImageEntry("a 'b'.png", "12-3.5", "", ()),
        ImageEntry("é\n.jpg", "etag", "9-1.0", (("text", "x"), ("n", 3), ("f", 1.5), ("none", None), ("l", ["a"]))),
        ImageEntry("gone.png", "", "", (("text", ""),)),
    ]
    assert [s.version for s in cut(Source("file:///d/cats/", "", 3, entries), 2)] == [
        "191d5363a4f2b3f796177d1169437b7d", "3de65c207de016a655e3715eaaf34364"
    ]  # fmt: skip
