"""What is read of the data: each file once for its index, once for its images, and nothing of it ever again."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from concept_trak.audit import worker as workers
from concept_trak.config import AuditConfig
from concept_trak.data.files import SKIPPED_BYTES
from concept_trak.models import small
from concept_trak.models.gaussian import Gaussian
from jobs.audit import audit
from jobs.exit_codes import ended
from tests.configured import configure_both
from tests.data.files import IMAGE, encoded
from tests.s3.proxy import Proxy
from tests.s3.server import BUCKET

CONCEPT = "{name: first, labels: '0', without_labels: '1', samples: 1}"
SETTINGS = (
    "method=d_trak", "methods.d_trak.train.times=[500]", "methods.d_trak.query.times=[500]", "data.captions=class",
    "projector.dim=16", "data.enlarge=true", "cluster=serial", "top=2", "shown=1", f"concepts=[{CONCEPT}]",
)  # fmt: skip

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]  # a minute or two each, beside the start of a server


def picture(seed: int, side: int) -> bytes:
    """Noise, so that no compression makes it small."""
    noise = Image.frombytes("RGB", (side, side), np.random.default_rng(seed).bytes(3 * side**2))
    return encoded(noise, "PNG", compress_level=0)


def tar(samples: int, first: int, side: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for n in range(first, first + samples):
            for name, content in ((f"{n:06d}.png", picture(n, side)), (f"{n:06d}.txt", b"%d" % (n % 3))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def put(key: str, content: bytes) -> int:
    client = boto3.Session().client("s3")
    client.put_object(Bucket=BUCKET, Key=key, Body=content)
    client.close()
    return len(content)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Gaussian, whose closed form costs little beside what is read of an image."""
    folder = tmp_path_factory.mktemp("model")
    small.pixel_pipeline(seed=0, resolution=8).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "load_model", lambda *ignored, **settings: Gaussian())
        yield folder


def run(model: Path, address: str, data: str, *more: str) -> None:
    arguments = [f"store={address}", f"model.path={model}", f"data.uri=s3://{BUCKET}/{data}", *SETTINGS, *more]
    assert ended(lambda: audit(*configure_both(AuditConfig, "config", arguments))) == 0


def read_of(proxy: Proxy, folder: str) -> dict[str, int]:
    """Bytes that were read of each file of a data set, since this was asked last."""
    read = {path.rpartition("/")[2]: size for path, size in proxy.read.items() if f"/{folder}/" in path and size}
    proxy.read.clear()
    return read


@pytest.mark.parametrize(
    ("tars", "samples", "side"),
    [(3, 10, 64), (20, 20, 920)],
    ids=["small", "20 tars of 50 MB"],
)
def test_a_tar_is_read_for_its_index_and_its_images_and_never_again(model, proxy, address, tars, samples, side):
    folder, usual = f"tars-{tars}", ("data.caption_column=txt", "data.shard_rows=10")
    sizes = {f"{i:03d}.tar": put(f"{folder}/{i:03d}.tar", tar(samples, i * samples, side)) for i in range(tars)}
    largest = max(sizes.values()) / samples + 2048
    run(model, address, folder, *usual, "audit=one")
    first = read_of(proxy, folder)
    twice = 2.05 if largest < SKIPPED_BYTES else 1.1  # the index passes over large images
    shown = 2 * 2 * 2 * largest  # two forms, two ends, two samples at each
    assert sum(first.values()) <= twice * sum(sizes.values()) + shown + tars * (4 << 20)
    sizes["new.tar"] = put(f"{folder}/new.tar", tar(samples, tars * samples, side))
    run(model, address, folder, *usual, "audit=two")
    second = read_of(proxy, folder)
    print(
        f"{sum(first.values())} of {sum(sizes.values())}, {second['new.tar']} of {sizes['new.tar']}, shown {shown:.0f}"
    )
    assert second.pop("new.tar") <= twice * sizes["new.tar"] + shown + (4 << 20)
    assert sum(second.values()) <= shown, "of an old tar more was read than the samples that are shown"
    run(model, address, folder, *usual, "audit=two")
    assert read_of(proxy, folder) == {}, "a finished audit read its data again"
    run(model, address, folder, *usual, "audit=three")
    assert read_of(proxy, folder) == {}, "unchanged data were read again"


SMALL_PAGES = {"write_batch_size": 4}
"""Pages of 1 MB: pyarrow looks at their size after so many rows, 1,024 by default."""


@pytest.mark.parametrize(
    ("rows", "side", "shard_rows", "options", "page"),
    [
        (600, 200, 200, SMALL_PAGES, 0),
        (20_000, 60, 2_000, SMALL_PAGES, 0),
        (20_000, 60, 2_048, {}, 1_024),
    ],
    ids=["small", "20000 images", "20000 images with default pages"],
)
def test_one_row_group_is_read_once(model, proxy, address, rows, side, shard_rows, options, page):
    """Over all shards of an audit, with the index. Five pages are read by themselves where pages are large, of `page`
    images: that of the first samples before the audit, and one for the sample at each of four ends. With pages of 1,024
    of 20,000 images that may be 1.27 times the file; 1.16 was seen, as samples of two ends are the same."""
    images = [{"bytes": picture(n, side), "path": None} for n in range(rows)]
    captions = [str(n % 3) for n in range(rows)]
    out = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(images, IMAGE), "caption": captions}), out, **options)
    folder = f"rows-{rows}-{shard_rows}"
    size = put(f"{folder}/a.parquet", out.getvalue())
    run(model, address, folder, f"data.shard_rows={shard_rows}", "audit=one", "top=1")
    read = read_of(proxy, folder)
    print(f"{read['a.parquet'] / size:.3f} times the file")
    assert read["a.parquet"] <= max(1.2, 1.01 + 5 * page / rows) * size
