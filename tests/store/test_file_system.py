"""The file system of an address is that of the environment of now."""

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from concept_trak.store.file_system import open_file_system


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
