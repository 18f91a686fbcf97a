"""WebDataset tars: every sample once under an id that stays, nothing outside of the tar, and no silent loss."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data import tar
from concept_trak.data.index import label_values
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import indexed_here, survey
from concept_trak.store.part import Reject
from tests.data.files import encoded, noise, plan


def packed(members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> bytes:
    """The bytes of a tar with these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def picture(n: int, form: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (4, 4), (n, n, n)), form)


def pairs(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    """Image, caption and json of each sample; n is in the picture's grey, in the caption and in the json."""
    return [
        member
        for n in range(first, first + count)
        for member in (
            (f"a/{n:04d}.png", picture(n)),
            (f"a/{n:04d}.txt", f"caption {n}".encode()),
            (f"a/{n:04d}.json", json.dumps({"text": f"said {n}", "shape": "circle", "uid": n}).encode()),
        )
    ]


def put(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(members))
    return path


def read(data: DataConfig) -> list[Sample | Reject]:
    return [one for shard in plan(data) for one in samples(shard, data, 4)]


def grey(one: Sample | Reject) -> int:
    assert isinstance(one, Sample)
    return int(((one.pixels[0, 0, 0] + 1) * 127.5).round())


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(
    count=st.integers(1, 30),
    shard_rows=st.integers(1, 31),
    kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_every_sample_comes_once_whatever_the_shards(count, shard_rows, kind):
    """Long names take headers of their own, before which a sample begins."""
    fs, folder = fsspec.filesystem("memory"), "b" * 120
    fs.pipe_file("/tars/x.tar", packed([(f"{folder}/{name}", data) for name, data in pairs(count)], kind))
    data = DataConfig(uri="memory://tars", caption_column="txt", shard_rows=shard_rows)
    seen = read(data)
    assert [one.id for one in seen] == [f"x.tar:{folder}/a/{n:04d}" for n in range(count)]
    assert [one.row for one in seen] == list(range(count))
    assert [(grey(s), s.caption) for s in seen if isinstance(s, Sample)] == [(n, f"caption {n}") for n in range(count)]


def test_keys_are_ids_that_stay_when_samples_move_to_other_tars(tmp_path):
    put(tmp_path / "one/a.tar", pairs(12))
    for i in range(3):
        put(tmp_path / f"three/{i}.tar", pairs(4, 4 * i))
    found = []
    for folder in ("one", "three"):
        data = DataConfig(uri=f"{tmp_path}/{folder}", caption_column="txt", id_column="__key__", shard_rows=5)
        survey(data)
        found.append([(one.id, grey(one)) for one in read(data)])
    assert found[0] == found[1] == [(f"a/{n:04d}", n) for n in range(12)]
    put(tmp_path / "three/again.tar", pairs(1, 7))
    with pytest.raises(ValueError, match=r"id_column='__key__' is not unique: a/0007 occur more than once"):
        survey(DataConfig(uri=f"{tmp_path}/three", caption_column="txt", id_column="__key__"))


def test_captions_labels_and_ids_come_from_members_or_from_the_json(tmp_path):
    members = [*pairs(2), ("b.seg.png", picture(9)), ("b.webp", picture(3, "WEBP")), ("b.cls", b"7"), ("b.txt", b"x")]
    members.append(("b.json", b'{"uid": "u5"}'))
    put(tmp_path / "a.tar", members)
    data = DataConfig(uri=str(tmp_path), caption_column="text", id_column="uid", label_columns=("shape", "txt", "cls"))
    survey(data)
    first, second, third = read(data)
    assert isinstance(first, Sample)
    assert (first.id, first.caption, first.labels) == (
        "0",
        "said 0",
        {"shape": "circle", "txt": "caption 0"},
    )
    assert second.id == "1"
    assert isinstance(third, Reject)
    assert (third.sample_id, third.reason) == ("u5", "no_caption")
    labels = {i: found["txt"] for shard in plan(data) for i, found in label_values(shard)}
    assert labels == {"0": "caption 0", "1": "caption 1", "u5": "x"}
    *_, other = read(DataConfig(uri=str(tmp_path), caption_column="cls", image_column="seg.png"))
    assert isinstance(other, Sample)
    assert (other.caption, grey(other)) == ("7", 9)


def linked(kind: bytes, target: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("l.png")
        info.type, info.linkname = kind, target
        tar.addfile(info)
        for name, content in (("l.txt", b"a secret"), ("m.png", picture(5)), ("m.txt", b"fine")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        packed([("../l.png", picture(1)), ("../l.txt", b"up"), ("m.png", picture(5)), ("m.txt", b"fine")]),
        packed([("/etc/l.png", picture(1)), ("/etc/l.txt", b"up"), ("m.png", picture(5)), ("m.txt", b"fine")]),
        linked(tarfile.SYMTYPE, "/etc/passwd"),
        linked(tarfile.LNKTYPE, "m.png"),
        linked(tarfile.CHRTYPE, ""),
    ],
    ids=["up", "absolute", "symbolic link", "hard link", "device"],
)
def test_members_that_reach_out_of_the_tar_are_rejects(tmp_path, content):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/x.tar").write_bytes(content)
    data = DataConfig(uri=f"{tmp_path}/tars", caption_column="txt")
    survey(data)
    bad, good = read(data)
    assert isinstance(bad, Reject)
    assert bad.reason == "unsafe_member"
    assert isinstance(good, Sample)
    assert (good.caption, grey(good)) == ("fine", 5)
    assert [p.name for p in tmp_path.rglob("*")] == ["tars", "x.tar"], "something was unpacked"


def test_a_member_larger_than_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MOST_MEMBER_BYTES", 5_000)
    put(tmp_path / "a.tar", [("big.png", encoded(noise(64, 64))), ("big.txt", b"x"), *pairs(1)])
    bad, good = read(DataConfig(uri=str(tmp_path), caption_column="txt"))
    assert isinstance(bad, Reject)
    assert "expected at most 5000" in bad.message
    assert isinstance(good, Sample)


def test_members_without_a_partner_are_rejects_and_hidden_ones_are_none(tmp_path):
    members = [
        ("._a.png", b"Apple"), ("a.png", picture(1)), ("b.txt", b"no picture"), ("c.png", picture(2)), ("c.txt", b" "),
        ("d.json", b"{"), ("d.png", picture(3)), ("d.txt", b"fine"), ("e.jpg", picture(4)), ("e.png", picture(4)),
        ("e.txt", b"which?"), ("f.json", b'{"text": ""}'), ("f.png", picture(5)), ("f.txt", b"fine"),
    ]  # fmt: skip
    put(tmp_path / "a.tar", members)
    seen = read(DataConfig(uri=str(tmp_path), caption_column="txt", shard_rows=4))
    told = {one.sample_id: one.reason for one in seen if isinstance(one, Reject)}
    assert told == {
        "a.tar:a": "no_caption",
        "a.tar:b": "no_image",
        "a.tar:c": "no_caption",
        "a.tar:e": "several_images",
    }
    asked = DataConfig(uri=str(tmp_path), caption_column="txt", other_captions=("text",))
    told = {one.sample_id: one.reason for one in read(asked) if isinstance(one, Reject)}
    assert told["a.tar:d"] == "json", "a json that is asked for and cannot be read is passed over in silence"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[: 3 * 1024 + 700], r"a\.tar is not a readable tar file \(unexpected end of data\)"),
        (lambda data: data[:2570], r"a\.tar is cut off inside of 'a/0000\.json'"),
        (lambda data: data[: webdataset_end(data)], r"a\.tar is cut off: it has no end mark at byte"),
        (lambda data: data[:1024] + b"\xff" * 512 + data[1536:], r"a\.tar is damaged at byte \d+; write it again"),
        (lambda data: b"no tar" * 200, r"a\.tar is not a readable tar file"),
        (lambda data: b"", r"a\.tar is not a readable tar file \(empty file\)"),
    ],
    ids=["in a member", "in a member that is read", "between members", "a header", "text", "empty"],
)
def test_a_tar_that_is_cut_off_or_damaged_is_refused_by_name(tmp_path, change, says):
    """tarfile takes a damaged header and a missing end for the end of the file: samples would be lost in silence."""
    (tmp_path / "a.tar").write_bytes(change(packed(pairs(4))))
    with pytest.raises(ValueError, match=says):
        indexed_here(DataConfig(uri=str(tmp_path)))


def webdataset_end(data: bytes) -> int:
    """Where the blocks of zeros at the end begin."""
    used = len(data.rstrip(b"\0"))
    return used + -used % 512


def test_samples_whose_members_stand_apart_are_refused(tmp_path):
    put(tmp_path / "a.tar", [("a.png", picture(1)), ("b.png", picture(2)), ("a.txt", b"x"), ("b.txt", b"y")])
    with pytest.raises(ValueError, match=r"a\.tar: the members of 'a' are not in one piece .*tar --sort=name"):
        indexed_here(DataConfig(uri=str(tmp_path)))


def test_a_column_that_no_sample_has_is_refused(tmp_path):
    put(tmp_path / "a.tar", pairs(2))
    with pytest.raises(
        ValueError, match=r"data\.caption_column='caption' is in none .*there: __key__, image, json, png"
    ):
        survey(DataConfig(uri=str(tmp_path)))
    with pytest.raises(ValueError, match=r"data\.label_columns='shap' .*did you mean 'shape'\?"):
        survey(DataConfig(uri=str(tmp_path), caption_column="txt", label_columns=("shap",)))


def test_only_the_range_of_a_shard_is_read(tmp_path):
    """What lies before it on the disk is overwritten, and so is what comes after it."""
    path = put(tmp_path / "a.tar", pairs(9))
    data = DataConfig(uri=str(tmp_path), caption_column="txt", shard_rows=3)
    _, middle, last = plan(data)
    status, content = path.stat(), path.read_bytes()
    first, after = middle.index_table["offset"][0].as_py(), last.index_table["offset"][0].as_py()
    damaged = b"\xff" * first + content[first:after]
    path.write_bytes(damaged + b"\xff" * (len(content) - len(damaged)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [grey(one) for one in samples(middle, data, 4)] == [3, 4, 5]


def test_a_tar_that_changed_after_planning_stops_the_audit(tmp_path):
    path = put(tmp_path / "a.tar", pairs(3))
    data = DataConfig(uri=str(tmp_path), caption_column="txt")
    (shard,) = plan(data)
    put(path, pairs(4))
    with pytest.raises(ValueError, match=r"a\.tar changed while the audit ran: planned version"):
        list(samples(shard, data, 4))
