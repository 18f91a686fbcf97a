"""What the index of a tar reads of storage: headers and texts alone where images are large, else whole blocks."""

import io

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image

from concept_trak.config import DataConfig
from concept_trak.data import webdataset
from concept_trak.data.files import BLOCK_BYTES, LOOK_BYTES, SKIPPED_BYTES, LookAheadCache
from concept_trak.data.survey import indexed_here
from tests.data.files import encoded, noise
from tests.data.test_webdataset import packed


class Ranges(AbstractFileSystem):
    """A file system with one tar that is read in ranges, as object stores are; it keeps each range."""

    protocol = "ranges"
    content, requests = b"", list[tuple[int, int]]()

    def ls(self, path, detail=True, **options):
        return [{"name": "data/a.tar", "size": len(self.content), "type": "file", "mtime": 1}]

    def _open(self, path, mode="rb", block_size=1, **options):
        return RangedRead(self, path, mode, block_size, size=len(self.content), **options)


class RangedRead(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        Ranges.requests.append((start, end))
        return Ranges.content[start:end]


def indexed(monkeypatch, tmp_path, sizes: list[int]) -> tuple[int, int, int]:
    """(bytes of a tar with members of these sizes, bytes of it that its index reads, requests)."""
    fsspec.register_implementation("ranges", Ranges, clobber=True)
    members = [(f"{n:03d}.{e}", c) for n, s in enumerate(sizes) for e, c in (("png", bytes(s)), ("txt", b"a %d" % n))]
    (tmp_path / "a.tar").write_bytes(packed(members))
    monkeypatch.setattr(Ranges, "content", (tmp_path / "a.tar").read_bytes())
    monkeypatch.setattr(Ranges, "requests", [])
    columns = ["row", "id", "caption", "offset", "length"]
    here, there = (
        indexed_here(DataConfig(uri=uri, caption_column="txt")).sources[0].index.select(columns)
        for uri in (str(tmp_path), "ranges://data/")
    )
    assert here.equals(there)
    assert here["caption"].to_pylist() == [f"a {n}" for n in range(len(sizes))]
    return len(Ranges.content), sum(end - start for start, end in Ranges.requests), len(Ranges.requests)


def test_large_images_are_passed_over(monkeypatch, tmp_path):
    size, read, requests = indexed(monkeypatch, tmp_path, [3 << 20] * 12)
    assert read < 0.05 * size
    assert requests <= 14, "one for each sample"


@pytest.mark.parametrize("bytes_behind", [3 << 20, 40_000])
def test_sizes_of_images_take_no_request(monkeypatch, tmp_path, bytes_behind):
    fsspec.register_implementation("ranges", Ranges, clobber=True)
    images = [encoded(noise(8 + n, 9)) + bytes(bytes_behind) for n in range(300 if bytes_behind < 1 << 20 else 8)]
    members = [(f"{n:03d}.{e}", c) for n, data in enumerate(images) for e, c in (("png", data), ("txt", b"a"))]
    monkeypatch.setattr(Ranges, "content", packed(members))
    requests, sizes = [], []
    for known in (False, True):
        monkeypatch.setattr(Ranges, "requests", [])
        with monkeypatch.context() as patch:
            if not known:
                patch.setattr(webdataset, "size_at_hand", lambda file, start, length: None)
            index = indexed_here(DataConfig(uri="ranges://data/", caption_column="txt")).sources[0].index
        requests.append(Ranges.requests)
        sizes.append(list(zip(index["width"].to_pylist(), index["height"].to_pylist(), strict=True)))
    assert requests[0] == requests[1]
    assert set(sizes[0]) == {(None, None)}
    assert sizes[1] == [Image.open(io.BytesIO(data)).size for data in images]


def test_small_images_are_read_with_what_is_between_them(monkeypatch, tmp_path):
    size, read, requests = indexed(monkeypatch, tmp_path, [40_000] * 400)
    assert read <= size
    assert requests <= size / BLOCK_BYTES + 8, "a request for each sample would take longer than the bytes"


def test_small_images_behind_large_ones(monkeypatch, tmp_path):
    size, read, requests = indexed(monkeypatch, tmp_path, [2 << 20, 10, 3 << 20, *[50_000] * 100, 2 << 20, 5])
    assert read < size - (5 << 20)
    assert requests <= 16


@pytest.mark.parametrize("gap", [0, 1, SKIPPED_BYTES, 3 * SKIPPED_BYTES])
def test_a_reader_that_jumps_gets_the_bytes_of_each_place(gap):
    content = bytes(range(256)) * (1 << 15)
    fetched = []
    cache = LookAheadCache(BLOCK_BYTES, lambda a, b: (fetched.append(b - a), content[a:b])[1], len(content))
    for start in range(0, len(content), gap + 1000):
        assert cache._fetch(start, start + 1000) == content[start : start + 1000]
    assert cache._fetch(5, 9) == content[5:9], "a place before the last one"
    assert cache._fetch(len(content), len(content) + 1) == b""
    assert max(fetched[1:-1], default=0) <= (LOOK_BYTES + 1000 if gap > SKIPPED_BYTES else BLOCK_BYTES + 1000)
