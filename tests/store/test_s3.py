"""The same promises over real HTTP with s3fs. moto stands in for an S3 server here: it keeps objects in memory.

No races here: moto looks and writes in two steps, so two concurrent creates of one name can both be told they won.
"""

import multiprocessing
import sys
import urllib.request
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from concept_trak.store import compaction, records
from concept_trak.store import object_backend as behind
from concept_trak.store.codec import decode_blocks, read_footer
from concept_trak.store.identity import FeatureSet
from concept_trak.store.store import Store
from tests.store.parts import a_part, planned


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def endpoint(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a user of this server, and an empty bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2/secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()
    boto3.Session().client("s3", endpoint_url=server).create_bucket(Bucket="bucket")
    return server


@pytest.fixture
def store(endpoint: str) -> Store:
    return Store("s3://bucket/deep/prefix")


def test_a_store_returns_what_was_put(store: Store):
    assert store.names("parts") == []
    assert store.size("parts/b") is None
    assert store.create("parts/b", b"0123456789")
    assert store.create("parts/a/deep", b"")
    assert store.create("parts-of-another", b"")
    assert (store.read("parts/b"), store.read("parts/b", 2, 5), store.read("parts/a/deep")) == (
        b"0123456789",
        b"234",
        b"",
    )
    assert (store.size("parts/b"), store.size("parts")) == (10, None)
    assert store.names("parts") == ["parts/a/deep", "parts/b"]
    store.replace("hint", b"1")
    store.replace("hint", b"22")
    assert store.read("hint") == b"22"
    store.delete("hint")
    store.delete("hint")
    with pytest.raises(FileNotFoundError, match="s3://bucket/deep/prefix/hint does not exist"):
        store.read("hint")


def test_the_first_create_stands_and_listings_are_fresh(store: Store):
    other = Store(store.uri)
    assert other.names("") == []
    assert store.create("name", b"first")
    assert other.size("name") == 5, "a listing cache hides what another process wrote"
    assert other.names("") == ["name"]
    assert Store("s3://bucket").names("") == ["deep/prefix/name"]
    assert other.create("name", b"first"), "a retry that meets its own bytes has succeeded"
    assert not other.create("name", b"second")
    assert store.read("name") == b"first"


def test_large_objects_are_one_put_and_parallel_ranges(store: Store):
    data = bytes(range(256)) * (2 * behind.RANGE_BYTES // 256 + 3)
    assert store.create("large", data)
    assert not store.create("large", data[:-1])
    assert store.read("large") == data
    client = boto3.Session().client("s3")
    etag = client.head_object(Bucket="bucket", Key="deep/prefix/large")["ETag"]
    assert "-" not in etag, "a multipart upload: some servers ignore If-None-Match there"


def test_a_store_made_before_a_fork_works_after_it(store: Store):
    store.create("name", b"bytes")
    child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(store.read("name") != b"bytes"))
    child.start()
    child.join(30)
    assert child.exitcode == 0, "the child used its parent's s3fs, whose event loop did not come along"


def test_a_shard_is_committed_and_adopted(store: Store):
    part = a_part(n=200, k=64)
    record = records.commit_part(store, part, "float16", "binary", 1.5, 1, "host-a")
    assert records.commit_part(store, part, "float16", "binary", 2.5, 2, "host-b") == record
    assert compaction.committed(store, FeatureSet("f00d"), planned(part.shard, "train-20-40", rows=202)) == {
        part.shard: record
    }
    assert read_footer(store, FeatureSet("f00d").part(part.shard)).sum_squares == record.sum_squares
    assert [sample_id for block in decode_blocks(records.read_part(store, record)) for sample_id in block.ids] == list(
        part.ids
    )


def test_probe_passes_and_leaves_nothing(store: Store):
    store.probe()
    assert store.names("") == []


def test_versions_and_children_are_of_fresh_listings(store: Store):
    store.create("few/a/one", b"1")
    store.create("few/two", b"2")
    first = store.versions("few")
    assert list(first) == ["few/a/one", "few/two"]
    assert len(set(first.values())) == 2
    assert store.children("few") == ["a/", "two"]
    store.replace("few/two", b"3")
    assert store.versions("few")["few/two"] != first["few/two"]
    assert store.versions("few")["few/a/one"] == first["few/a/one"]
    assert store.children("none") == []


def test_probe_names_a_missing_bucket(endpoint: str):
    with pytest.raises(ValueError, match=r"s3://nowhere/x cannot be used.*Expected a bucket that exists: create it"):
        Store("s3://nowhere/x").probe()


def test_probe_names_wrong_credentials_and_prints_none(store: Store, endpoint: str):
    def authorize_after(requests: str) -> None:
        url, text = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, requests.encode(), text)).close()

    authorize_after("0")
    try:
        with pytest.raises(ValueError, match=r"cannot be used.*PermissionError.*check .* the credentials") as error:
            store.probe()
    finally:
        authorize_after("inf")
    assert "hunter2" not in str(error.value)
    assert "testkey" not in str(error.value)


def test_an_unreachable_server_is_an_oserror_and_a_message(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(store.uri)
    with pytest.raises(OSError, match=r"could not look up s3://bucket/deep/prefix/name: EndpointConnectionError"):
        store.size("name")
