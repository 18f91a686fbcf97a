"""A whole audit with its data and its results on S3 answers what the same audit answers in a folder."""

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from s3fs import S3FileSystem

from concept_trak.config import AuditConfig
from concept_trak.data.benchmarks import synthetic
from concept_trak.models import small
from concept_trak.store.store import Store
from jobs.audit import audit
from jobs.exit_codes import ended
from tests.configured import configure_both
from tests.s3.proxy import Proxy
from tests.s3.server import BUCKET, SECRET, Server
from tests.tolerances import DENSE32

CONCEPT = "{name: red, prompt: a red triangle, without_prompt: a triangle, truth: {colour: red}, samples: 2}"
SETTINGS = (
    "method=caption_trak",
    "methods.caption_trak.train.times=[500]",
    "methods.caption_trak.query.points=6",
    "methods.caption_trak.query.every=3",
    "data=shapes",
    "data.shard_rows=8",
    "projector.dim=64",
    "scores=all",
    "audit=one",
    f"concepts=[{CONCEPT}]",
)
pytestmark = pytest.mark.long
Scores = dict[tuple[str, str], dict[str, float]]


@dataclass(frozen=True)
class World:
    """A model and 32 images, in folders; the images also lie in the bucket."""

    model: Path
    data: Path

    def audit(self, store: str, data: str, *more: str) -> int:
        """The exit code."""
        here = (f"store={store}", f"model.path={self.model}", f"data.uri={data}")
        return ended(lambda: audit(*configure_both(AuditConfig, "config", [*here, *SETTINGS, *more])))

    def audit_of_s3(self, store: str, *more: str) -> int:
        return self.audit(store, f"s3://{BUCKET}/shapes", *more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    small.pixel_pipeline(seed=0, resolution=16).save_pretrained(folder / "model")
    client = boto3.Session().client("s3")
    for path in synthetic.write_synthetic(folder / "shapes", rows=32, seed=0, files=2):
        client.upload_file(str(path), BUCKET, f"shapes/{path.name}")
    client.close()
    return World(folder / "model", folder / "shapes")


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = tmp_path_factory.mktemp("expected")
    assert world.audit(str(folder), str(world.data), "cluster=serial") == 0
    return scores(Store(str(folder)))


@pytest.fixture
def own_ray() -> Iterator[None]:
    """No Ray that another test started: its workers would know nothing of this test's environment."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


def scores(store: Store) -> Scores:
    """Of the best samples in `top.parquet`, by concept and form: here all samples, since there are fewer than `top`."""
    table = pq.read_table(io.BytesIO(store.read("audits/one/top.parquet")))
    found: Scores = {}
    for row in table.to_pylist():
        if row["end"] == "top":
            found.setdefault((row["concept"], row["form"]), {})[row["sample_id"]] = row["score"]
    return found


def require_equal(found: Scores, expected: Scores) -> None:
    """The same samples, in the same order up to ties, with the same scores up to the order of sums in K."""
    assert found.keys() == expected.keys()
    for key, ours in found.items():
        theirs = expected[key]
        assert len(ours) == 32
        assert ours.keys() == theirs.keys(), "samples were lost or counted twice"
        difference = np.array([ours[sample] - theirs[sample] for sample in theirs])
        assert np.abs(difference).max() <= DENSE32 * np.abs(list(theirs.values())).max(), f"{key}: other scores"


def leftovers(store: str) -> list[str]:
    """What does not belong into a store: files of no known place, or a probe's."""
    return [name for name in Store(store).names("") if not name.startswith(("features/", "audits/", "sources/"))]


def holds_secret(store: str) -> list[str]:
    """The files with the secret in them."""
    opened = Store(store)
    return [name for name in opened.names("") if SECRET.encode() in opened.read(name)]


def test_the_answer_is_that_of_a_folder(world: World, expected: Scores, server: Server, address: str, capfd, caplog):
    caplog.set_level("DEBUG", "concept_trak")
    assert world.audit_of_s3(address, "cluster=serial") == 0
    require_equal(scores(Store(address)), expected)
    assert leftovers(address) == []
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err + caplog.text
    assert holds_secret(address) == []
    assert world.audit_of_s3(address, "cluster=serial") == 0
    assert "no gradient work done" in capfd.readouterr().out
    # Another client, as a reader of the results would use.
    files = fs.S3FileSystem(endpoint_override=server.url, region=os.environ["AWS_DEFAULT_REGION"])
    table = pq.read_table(f"{address.removeprefix('s3://')}/audits/one/top.parquet", filesystem=files)
    assert table.num_rows == 2 * 2 * 32, "two forms, two ends"


@pytest.mark.soak
@pytest.mark.usefixtures("own_ray")
def test_workers_bridge_five_percent_of_faults(world: World, expected: Scores, proxy: Proxy, address: str):
    proxy.trouble(0.05, seed=2)
    assert world.audit_of_s3(address, "cluster=local", "cluster.workers=2") == 0
    proxy.trouble(0, seed=2)
    assert min(proxy.faults[kind] for kind in ("slow_down", "reset", "lost")) > 0, f"too few faults: {proxy.faults}"
    require_equal(scores(Store(address)), expected)
    assert leftovers(address) == []


@pytest.mark.soak
def test_a_power_cut_amid_featurizing_is_bridged(world: World, expected: Scores, server, proxy: Proxy, address: str):
    ceph = server.real("a server that is killed: moto keeps everything in memory")
    proxy.at_put("/parts/", nth=2, before=ceph.power_cut, after=ceph.start)
    code = world.audit_of_s3(address, "cluster=serial")
    assert code in (0, 4), "storage that dies is infrastructure: the run goes on or says so"
    assert not proxy.traps, "the server was never cut off: this proves nothing"
    assert world.audit_of_s3(address, "cluster=serial") == 0
    require_equal(scores(Store(address)), expected)


def test_storage_that_fails_under_the_driver_is_one_message(world: World, server, proxy, address, monkeypatch, capfd):
    ceph = server.real("a server that is killed: moto keeps everything in memory")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that clients give up within seconds
    proxy.at_put("plan.parquet", before=ceph.kill_gateway)
    try:
        assert world.audit_of_s3(address, "cluster=serial") == 4
    finally:
        ceph.start()
    said = capfd.readouterr().err
    assert said.startswith(f"error: could not create {address}/audits/one/plan.parquet: ")
    assert said.endswith("what is done stays done. Run the same command again.\n")


@pytest.mark.soak
@pytest.mark.parametrize(("pattern", "nth"), [("/parts/", 3), ("top.parquet", 1)], ids=["worker", "driver"])
def test_storage_that_stays_away_ends_a_run_that_can_be_resumed(
    world: World, expected: Scores, server: Server, proxy: Proxy, address: str, monkeypatch, capfd, pattern, nth
):
    ceph = server.real("a server that is killed: moto keeps everything in memory")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that clients give up within seconds
    proxy.at_put(pattern, nth, before=ceph.kill_gateway)
    try:
        assert world.audit_of_s3(address, "cluster=serial", "budget.infrastructure=1") == 4
    finally:
        ceph.start()
    said = capfd.readouterr().err
    assert "run the same command again" in said.lower()
    assert "Traceback" not in said.partition("The last was")[0], "an error of storage is a message"
    assert SECRET not in said
    assert len(Store(address).names("features")) > 3, "the finished shards were lost"
    assert not proxy.traps
    assert world.audit_of_s3(address, "cluster=serial", "budget.infrastructure=1") == 0
    require_equal(scores(Store(address)), expected)


def test_data_that_cannot_be_read_is_one_message(world: World, proxy: Proxy, tmp_path, monkeypatch, capfd):
    assert world.audit(str(tmp_path), "s3://no-such-bucket/x", "cluster=serial") == 2
    assert "data.uri='s3://no-such-bucket/x' does not exist" in capfd.readouterr().err
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    S3FileSystem.clear_instance_cache()
    assert world.audit_of_s3(str(tmp_path), "cluster=serial") == 2
    assert re.search(r"data.uri=.* cannot be read .*; check the address and the credentials", capfd.readouterr().err)
