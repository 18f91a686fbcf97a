"""Every format of training data read from S3 gives the samples that it gives in a folder, shard by shard."""

import io
import json
import tarfile
from pathlib import Path

import boto3
import pytest
import torch
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data import latents
from concept_trak.data.sample import Sample, samples
from concept_trak.data.survey import survey
from concept_trak.store.file_system import find_files, open_file_system
from concept_trak.store.part import Reject
from tests.data.files import encoded, plan, rows, write
from tests.s3.server import BUCKET

COUNT = 7
TEXT = {"webdataset": {"caption_column": "txt", "label_columns": ("kind",)}, "folder": {"caption_column": "txt"}}


def picture(n: int) -> bytes:
    return encoded(Image.new("RGB", (4, 4), (n, n, n)))


def webdataset(folder: Path) -> None:
    """Two tars, the first of which names a place outside of itself."""
    for number, members in enumerate((range(4), range(4, COUNT))):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for n in members:
                name = f"{'../' if n == 2 else ''}a/{n:04d}"
                for ending, data in (
                    ("png", picture(n)), ("txt", f"caption {n}".encode()), ("json", json.dumps({"kind": n}).encode())
                ):  # fmt: skip
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def parquet(folder: Path) -> None:
    write(folder / "a.parquet", rows(4), group=3)
    write(folder / "b.parquet", rows(3, first=4))


def images(folder: Path) -> None:
    for n in range(COUNT):
        (folder / f"{n}.png").write_bytes(picture(n))
        (folder / f"{n}.txt").write_text(f"caption {n}")


def tensors(folder: Path) -> None:
    x = torch.arange(COUNT).float()
    condition = {"text": x[:, None].expand(-1, 5)}
    latents.write_latents(folder / "a.safetensors", x[:, None, None, None].expand(-1, 2, 4, 4), condition, {})


def test_folders_listed_side_by_side_have_the_files_of_one_listing(address):
    client = boto3.Session().client("s3")
    names = ("a.png", "one/b.png", "one/deep/c.png", "two/", "two/d.png", "one.png", "3/e.png")
    for name in names:
        client.put_object(
            Bucket=BUCKET, Key=f"{address.rpartition('/')[2]}/{name}", Body=b"1" if name[-1] != "/" else b""
        )
    client.close()
    fs, path = open_file_system(address)
    whole = fs.find(path, detail=True)
    files = find_files(fs, path)
    assert [name.removeprefix(f"{path}/") for name in files] == sorted(names)
    assert {name: entry["ETag"] for name, entry in files.items()} == {n: e["ETag"] for n, e in whole.items()}


FORMATS = {"webdataset": webdataset, "parquet": parquet, "folder": images, "latents": tensors}


def told(one: Sample | Reject) -> tuple[object, ...]:
    """A sample without where it lay."""
    if isinstance(one, Reject):
        return one.sample_id, one.row, one.reason, one.message
    return one.id, one.row, one.caption, one.labels, one.content.flatten().tolist()


def read(uri: str, kind: str, shard_rows: int) -> list[tuple[object, ...]]:
    data = DataConfig(uri=uri, format=kind, shard_rows=shard_rows, **TEXT.get(kind, {}))
    survey(data)
    return [told(one) for shard in plan(data) for one in samples(shard, data, 4)]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_samples_are_those_of_a_folder(kind, tmp_path):
    FORMATS[kind](tmp_path)
    client = boto3.Session().client("s3")
    for path in sorted(tmp_path.iterdir()):
        client.put_object(Bucket=BUCKET, Key=f"data-{kind}/{path.name}", Body=path.read_bytes())
    client.close()
    expected = read(str(tmp_path), kind, 64)
    assert len(expected) == COUNT
    assert [len(one) for one in expected].count(4) == (kind == "webdataset"), "one member leads out of its tar"
    for shard_rows in (2, 64):
        assert read(f"s3://{BUCKET}/data-{kind}", kind, shard_rows) == expected, f"shards of {shard_rows} rows"
