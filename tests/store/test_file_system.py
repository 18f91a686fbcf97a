"""The file system of an address is that of the environment of now; its folders are listed side by side."""

import os
import threading
from collections import Counter
from stat import S_ISDIR

import boto3
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from concept_trak.store import file_system
from concept_trak.store.file_system import LISTERS, find_files, open_file_system
from concept_trak.store.store import Store


def test_a_changed_endpoint_is_asked_at_once(monkeypatch: pytest.MonkeyPatch):
    """Two servers one after the other, which hold the same; a client of the first cannot reach the second."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for turn in ("first", "second"):
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*moto.get_host_and_port()))
            client = boto3.Session().client("s3")
            client.create_bucket(Bucket="changed-endpoint")
            client.put_object(Bucket="changed-endpoint", Key=f"{turn}.png", Body=b"")
            client.close()
            fs, path = open_file_system("s3://changed-endpoint")
            assert f"changed-endpoint/{turn}.png" in fs.ls(path, detail=False), "the old client was returned"
            assert open_file_system("s3://changed-endpoint")[0] is fs, "the client is opened once per environment"
        finally:
            moto.stop()


def test_paths_urls_and_chains_are_opened(tmp_path):
    memory = str(id(tmp_path))
    fsspec.filesystem("memory").pipe_file(f"/{memory}/x", b"1")
    (tmp_path / "x").write_bytes(b"1")
    for folder in (str(tmp_path), f"file://{tmp_path}", f"memory://{memory}", f"simplecache::memory://{memory}"):
        fs, path = open_file_system(f"{folder}/x")
        assert fs.cat_file(path) == b"1"
    with pytest.raises(ValueError, match="nowhere"):
        open_file_system("nowhere://x")


class CountedListings(MemoryFileSystem):
    """Files of its own that are listed as S3 lists them; `together` listings of folders wait for one another."""

    protocol, cachable = ("s3", "s3a"), False

    def __init__(self, *names: str, together: int = 1, broken: str = "") -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.counts, self.broken, self.barrier = Counter[str](), broken, threading.Barrier(together)
        for name in names:
            self.pipe_file(f"/data/{name}", b"1")

    def ls(self, path, detail=True, **kwargs):
        self.counts["ls"] += 1
        return super().ls(path, detail)

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **kwargs):
        self.counts[path] += 1
        if path != "/data":
            self.barrier.wait(30)
        if path == self.broken:
            raise PermissionError(f"{path} cannot be listed")
        names = sorted(name for name in self.store if name.startswith(f"{path}/"))
        return {name: {"name": name, "size": 1, "type": "file"} for name in names} if detail else names


NAMES = ("z.png", "b/1.png", "b/deep/2.png", "a/3.png", "a.png", "c/4.png", "c/5.png")


def test_the_folders_of_an_object_store_are_listed_side_by_side():
    files = CountedListings(*NAMES, together=3)
    assert list(find_files(files, "/data")) == sorted(f"/data/{name}" for name in NAMES)
    assert files.counts == {"ls": 1, "/data/a": 1, "/data/b": 1, "/data/c": 1}
    assert list(find_files(CountedListings(*NAMES), "/data")) == files.find("/data")
    assert find_files(CountedListings("1.png"), "/data").keys() == {"/data/1.png"}


def test_many_small_folders_take_one_listing_more_and_large_ones_one_each(monkeypatch):
    monkeypatch.setattr(file_system, "SMALL_FOLDER", 3)
    small = CountedListings(*(f"{i:03d}/a.png" for i in range(100)))
    assert len(find_files(small, "/data")) == 100
    assert small.counts.pop("/data") == small.counts.pop("ls") == 1
    assert small.counts.total() == LISTERS
    large = CountedListings(*(f"{i:02d}/{j}.png" for i in range(LISTERS + 1) for j in range(3)))
    assert len(find_files(large, "/data")) == (LISTERS + 1) * 3
    assert large.counts == {"ls": 1, **{f"/data/{i:02d}": 1 for i in range(LISTERS + 1)}}


def test_an_error_of_one_folder_and_a_missing_folder_are_raised():
    with pytest.raises(PermissionError, match="/data/b cannot be listed"):
        find_files(CountedListings(*NAMES, broken="/data/b"), "/data")
    with pytest.raises(FileNotFoundError):
        find_files(CountedListings(*NAMES), "/other")


@pytest.mark.parametrize("write", [Store.create, Store.replace])
def test_a_file_is_on_disk_before_it_has_its_name_and_its_name_before_the_writer_goes_on(tmp_path, monkeypatch, write):
    """Or else a power cut leaves a record of a part that is not whole."""

    def kind(descriptor: int) -> str:
        return "folder" if S_ISDIR(os.fstat(descriptor).st_mode) else "file"

    steps: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(kind(descriptor)))
    for name in ("link", "replace"):
        usual = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *paths, usual=usual: steps.append("name") or usual(*paths))
    write(Store(str(tmp_path)), "folder/name", b"content")
    assert steps == ["file", "name", "folder"]
