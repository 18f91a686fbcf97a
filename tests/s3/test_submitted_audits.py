"""Two audits as jobs of one Ray cluster, over data on S3 that grows by a fifth in between: only the new is computed."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import boto3
import duckdb
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from concept_trak.audit.gram_tree import gram_tree
from concept_trak.audit.plan import shards
from concept_trak.config import DataConfig
from concept_trak.data.benchmarks import synthetic
from concept_trak.data.shard import Shard
from concept_trak.data.survey import survey
from concept_trak.models import small
from concept_trak.store.manifest import Audit, read_manifest
from concept_trak.store.store import Store
from jobs.diff import DiffConfig, diff
from tests.cluster.head import TOKEN, nodes, python, standing
from tests.s3.server import BUCKET, KEY, SECRET

ROWS, SHARD = (40, 8), 4
STORE, DATA = f"s3://{BUCKET}/weekly", f"s3://{BUCKET}/growing"
PASSED_ON = (
    "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION",
)  # fmt: skip
SETTINGS = (
    "method=caption_trak", "methods.caption_trak.train.times=[500]", "methods.caption_trak.query.points=11",
    "methods.caption_trak.query.every=5", "projector.dim=64", f"data.shard_rows={SHARD}", "scores=all", "top=20",
    "concepts=[{name: red, prompt: a red circle, without_prompt: a circle, samples: 2}]", "cluster.workers=2",
)  # fmt: skip


# Minutes only where many share the machine: nothing here waits for time to pass.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Week:
    """What one submitted audit left: every object of the store, with its etag, and the plan it was made over."""

    objects: dict[str, str]
    plan: list[Shard]
    said: str

    def of(self, folder: str) -> set[str]:
        """The stems of the objects of features/<fingerprint>/<folder>/."""
        names = (name.split("/") for name in self.objects if name.startswith("features/"))
        return {Path(part[3]).stem for part in names if part[2] == folder}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes of one core that know nothing of the S3 server: what a job needs, it is given."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name in PASSED_ON:
            patch.delenv(name)
        head = stack.enter_context(standing(tmp_path_factory.mktemp("cluster"), cpus=1, workers=1))
        patch.undo()
        yield head.dashboard


@pytest.fixture(scope="module")
def weeks(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Week, Week]:
    """The same command twice under two names; in between the data grew."""
    folder = tmp_path_factory.mktemp("weeks")
    small.pixel_pipeline(seed=0, resolution=16).save_pretrained(folder / "model")
    (first,) = synthetic.write_synthetic(folder / "first", ROWS[0], 0, files=1, resolution=16)
    (more,) = synthetic.write_synthetic(folder / "more", ROWS[1], 0, files=1, first=ROWS[0], resolution=16)
    name = upload_as_two_groups(first)
    before = week(cluster, folder / "model", "week-1")
    put(more, f"{name}-more")
    return before, week(cluster, folder / "model", "week-2")


def upload_as_two_groups(path: Path) -> str:
    """Put a file under a name for which its shards make two groups; where groups end is decided by hashes of names."""
    for i in range(200):
        put(path, f"{i:03d}")
        if len(gram_tree(planned()).top) == 2:
            return f"{i:03d}"
        with closing(boto3.Session().client("s3")) as client:
            client.delete_object(Bucket=BUCKET, Key=f"growing/{i:03d}.parquet")
    raise AssertionError("no name splits the file's shards into two groups")


def put(path: Path, name: str) -> None:
    with closing(boto3.Session().client("s3")) as client:
        client.upload_file(str(path), BUCKET, f"growing/{name}.parquet")


def planned() -> list[Shard]:
    return shards(survey(DataConfig(uri=DATA)).sources, SHARD)


def week(cluster: str, model: Path, name: str) -> Week:
    here = (f"store={STORE}", f"data.uri={DATA}", f"model.path={model}", f"audit={name}")
    own = (f"address={cluster}", f"python={sys.executable}", f"env=[{','.join(PASSED_ON)}]")
    done = python("-m", "jobs.submit", *own, "--", *here, *SETTINGS, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    with closing(boto3.Session().client("s3")) as client:
        found = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="weekly/")
        objects = {o["Key"].removeprefix("weekly/"): o["ETag"] for page in found for o in page.get("Contents", ())}
    return Week(objects, planned(), done.stdout)


def test_the_cluster_has_two_nodes_and_the_job_its_own_name(cluster, weeks):
    assert len(nodes(cluster)) == 2
    assert [f"submitted  week-{i}-1 to {cluster}" in week.said for i, week in enumerate(weeks, 1)] == [True, True]


def test_only_new_shards_and_the_groups_they_touch_are_computed(weeks):
    before, after = weeks
    assert [sum(s.rows for s in week.plan) for week in weeks] == [40, 48], "the data did not grow by a fifth"
    known = {shard.name for shard in before.plan}
    assert before.of("parts") == known
    new = {shard.name for shard in after.plan} - known
    assert (len(known), len(new)) == (10, 2)
    assert after.of("parts") - before.of("parts") == new
    assert "features   caption_trak: 10 of 12 shards are done, 2 to compute" in after.said
    wanted = [{node.name for node in gram_tree(week.plan).nodes} for week in weeks]
    assert after.of("grams") - before.of("grams") == wanted[1] - wanted[0]
    assert len(wanted[1] - wanted[0]) == 1, "the groups that the new shards do not touch were summed again"
    assert wanted[0] & wanted[1], "no group is left as it was: this proves nothing"
    changed = {name for name, etag in before.objects.items() if after.objects[name] != etag}
    assert changed <= {"audits/latest.json", "audits/index.html", "audits/index.json"}, (
        "what stands is never written again"
    )


def test_latest_names_the_second(weeks):
    store = Store(STORE)
    assert read_manifest(Audit(store, "week-2")) is not None
    assert b"week-2" in store.read("audits/latest.json")


def test_duckdb_reads_the_same_top_in_place(weeks):
    """From every score, by SQL over S3, what the audit says is its top."""
    with duckdb.connect() as sql:
        sql.register_filesystem(S3FileSystem(use_listings_cache=False, skip_instance_cache=True))
        where = f"{STORE}/audits/week-2"
        told = sql.execute(
            f"""SELECT sample_id, score FROM read_parquet('{where}/top.parquet')
            WHERE "end" = 'top' AND form = 'damped' AND method = 'caption_trak' ORDER BY rank"""
        ).fetchall()
        found = sql.execute(
            f"""SELECT sample_id, red FROM read_parquet('{where}/caption_trak/scores/*.parquet')
            ORDER BY red DESC, sample_id LIMIT 20"""
        ).fetchall()
    assert len(told) == 20
    assert found == told


def test_the_difference_is_what_two_tops_and_two_plans_say(weeks, capsys):
    """Written out from the files alone, with sets."""
    assert diff(DiffConfig(STORE, "week-1", "week-2")) == 0
    assert "red by caption_trak:" in capsys.readouterr().out
    files = S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def table(name: str) -> list[dict]:
        return pq.read_table(f"{BUCKET}/weekly/audits/{name}", filesystem=files).to_pylist()

    def ranks(audit: str) -> dict[str, int]:
        rows = table(f"{audit}/top.parquet")
        return {r["sample_id"]: r["rank"] for r in rows if (r["form"], r["end"]) == ("damped", "top")}

    old, new = ranks("week-1"), ranks("week-2")
    moves = {m["sample_id"]: m for m in table("week-2/diff-week-1.parquet") if m["form"] == "damped"}
    assert moves.keys() == old.keys() | new.keys()
    for sample, move in moves.items():
        change = "stayed" if sample in old and sample in new else "entered" if sample in new else "left"
        assert (move["change"], move["rank_before"], move["rank_after"]) == (change, old.get(sample), new.get(sample))
    (summary,) = [s for s in table("week-2/diff-week-1.summary.parquet") if s["form"] == "damped"]
    fresh = [s for s in new if "-more" in s]
    assert summary["new_share"] == pytest.approx(len(fresh) / 20)
    assert summary["query_cosine"] == pytest.approx(1.0), "the query does not depend on the data"


def test_no_secret_is_left_behind(weeks):
    store = Store(STORE)
    secrets = (SECRET.encode(), TOKEN.encode(), KEY.encode())
    assert [name for name in store.names("") if any(s in store.read(name) for s in secrets)] == []
    assert SECRET not in "".join(week.said for week in weeks)
