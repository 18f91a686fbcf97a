"""The store's promises on a real S3 server."""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from concept_trak.store import compaction, records
from concept_trak.store import object_backend as behind
from concept_trak.store.codec import decode_blocks, read_footer
from concept_trak.store.identity import FeatureSet
from concept_trak.store.lookup import shards_holding
from concept_trak.store.store import Store
from tests.s3.proxy import Proxy
from tests.s3.server import BUCKET, KEY, SECRET, Server
from tests.store.parts import a_part, planned

REFUSAL = 6  # requests: what a client may spend on finding out that it is refused; a retry loop takes dozens


def test_racing_creates_have_one_winner(server: Server, address: str):
    server.real("one winner among racing creates: moto looks and writes in two steps")
    names, start = [f"name-{turn}" for turn in range(5)], threading.Barrier(8)

    def race(worker: int) -> list[bool]:
        store, won = Store(address), []
        for name in names:
            start.wait()
            won.append(store.create(name, f"worker {worker}".encode() * 1000))
        return won

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(8)))
    for name, won in zip(names, zip(*outcomes, strict=True), strict=True):
        assert sum(won) == 1, f"{name} has {sum(won)} winners: a lost race must be told from a lost answer by its bytes"
        assert Store(address).read(name) == f"worker {won.index(True)}".encode() * 1000
    assert Store(address).names("") == sorted(names)


def test_a_refused_create_is_decided_by_reading_back(address: str):
    objects, store = behind.FsspecBackend("s3", address.removeprefix("s3://")), Store(address)
    assert store.create("name", b"first")
    # Ceph's refusal reaches us as EINVAL and not as FileExistsError: it leaves out which condition failed.
    with pytest.raises(OSError, match="could not create"):
        objects.put_new("name", b"second")
    assert store.create("name", b"first"), "a retry that meets its own bytes has succeeded"
    assert not store.create("name", b"second")
    assert store.read("name") == b"first"


def test_probe_accepts_it_and_leaves_nothing(address: str):
    Store(address).probe()
    assert Store(address).names("") == []


def test_large_objects_are_one_put_and_ranged_reads(proxy: Proxy, address: str):
    store, data = Store(address), bytes(range(251)) * (40 * 2**20 // 251)
    assert store.create("large", data)
    assert proxy.seen["PUT"] == 1, "a multipart upload: this server ignores If-None-Match there"
    assert not store.create("large", data[:-1])
    before = proxy.seen["GET"]
    assert store.read("large") == data
    assert proxy.seen["GET"] - before == 3, "40 MB in ranges of 16 MiB"
    edge = behind.RANGE_BYTES
    assert store.read("large", edge - 3, edge + 5) == data[edge - 3 : edge + 5]
    assert store.read("large", len(data) - 7) == data[-7:]
    assert store.size("large") == len(data)


def test_a_footer_costs_two_requests_and_ids_no_features(proxy: Proxy, address: str):
    store, part = Store(address), a_part(n=2000, k=512)
    records.commit_part(store, part, "float16", "binary", 0.0, 1, "here")
    before = dict(proxy.seen)
    name = FeatureSet(part.fingerprint).part(part.shard)
    assert read_footer(store, name).rows == 2000
    assert (proxy.seen["HEAD"] - before["HEAD"], proxy.seen["GET"] - before["GET"]) == (1, 1)
    before = dict(proxy.seen)
    assert shards_holding(store, FeatureSet(part.fingerprint), [part.shard], {"img-07"}) == {"img-07": part.shard}
    assert proxy.seen["GET"] - before["GET"] <= 2, "the footer, and the column of ids"


def test_listings_go_on_after_a_thousand_names(address: str):
    store, names = Store(address), [f"parts/{number:05d}" for number in range(1010)]
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda name: store.create(name, b""), names))
    assert store.names("parts") == names
    assert store.names("part") == [], "a listing by prefix instead of by folder"


def test_what_is_deleted_is_gone(address: str):
    store = Store(address)
    store.create("a/b", b"12345")
    store.create("a", b"beside a folder of the same name")
    assert (store.size("a/b"), store.size("a"), store.size("c")) == (5, 32, None)
    store.delete("a/b")
    store.delete("a/b")
    assert (store.size("a/b"), store.names("")) == (None, ["a"])
    with pytest.raises(FileNotFoundError, match=f"{address}/a/b does not exist"):
        store.read("a/b")
    assert store.create("a/b", b"again")


def test_a_shard_is_committed_and_read_back(address: str):
    store, part = Store(address), a_part(n=300, k=256)
    record = records.commit_part(store, part, "float16", "binary", 1.0, 1, "host")
    assert compaction.committed(Store(address), FeatureSet("f00d"), planned(part.shard, rows=len(part.ids) + 2)) == {
        part.shard: record
    }
    data = records.read_part(store, record)
    assert [sample_id for block in decode_blocks(data) for sample_id in block.ids] == list(part.ids)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AWS_SECRET_ACCESS_KEY", "a-word-that-opens-nothing"), ("AWS_ACCESS_KEY_ID", "nobody-knows-this-key")],
    ids=["secret", "key"],
)
def test_wrong_credentials_are_one_message(server, proxy: Proxy, address: str, monkeypatch, variable, value, caplog):
    server.real("wrong credentials: moto accepts any")
    caplog.set_level(logging.DEBUG, "concept_trak")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=r"cannot be used: .*PermissionError.*check .* the credentials") as error:
        Store(address).probe()
    assert proxy.seen.total() <= REFUSAL, "a refusal is tried again and again: it takes minutes to be told"
    assert not [word for word in (value, KEY, SECRET) if word in str(error.value) + caplog.text]


def test_no_credentials_are_one_message(address: str, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ValueError, match=r"Partial credentials|locate credentials") as error:
        Store(address).probe()
    assert "check" in str(error.value)
    assert KEY not in str(error.value)


def test_a_missing_bucket_is_one_message(proxy: Proxy):
    with pytest.raises(ValueError, match=r"s3://no-such-bucket/x cannot be used.*Expected a bucket that exists"):
        Store("s3://no-such-bucket/x").probe()
    assert proxy.seen.total() <= REFUSAL


def test_any_client_finds_what_is_written(address: str):
    """What is written here is what any client of S3 finds, under the name that the address says."""
    Store(address).replace("hint.json", b'{"a": 1}')
    client = boto3.Session().client("s3")
    body = client.get_object(Bucket=BUCKET, Key=f"{address.removeprefix(f's3://{BUCKET}/')}/hint.json")["Body"]
    assert json.loads(body.read()) == {"a": 1}
    client.close()
