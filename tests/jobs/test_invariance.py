"""What the answer must not depend on: batch, shard size, order, executor, number of workers."""

import shutil
from dataclasses import dataclass

import numpy as np
import pytest

from cluster.executor import Resources, unwatched
from cluster.serial import Serial
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.prepare import prepare
from concept_trak.audit.stages import run_stages
from concept_trak.report.publish_audit import publish_audit
from jobs.audit import audit
from jobs.configure import CONF
from jobs.execute import ExecutorMapper, RunConfig
from jobs.exit_codes import ended
from tests.jobs.world import Found, files_under
from tests.tolerances import SCORE16

# Everything but the files that name the store, or how long something took.
TIMELESS = ("gram.safetensors", "queries/", "scores/", "top.parquet", "rejects.parquet")


@dataclass(frozen=True)
class Backwards(Serial):
    """The serial executor, last item first."""

    def map(self, task, items, resources=Resources(), watch=unwatched):
        return super().map(task, list(items)[::-1], resources, watch)


@pytest.fixture
def own_ray():
    """Ray as the job starts it, from the folder that the test stands in; gone with the test."""
    import ray

    yield
    ray.shutdown()


def assert_same_answer(ours: Found, theirs: Found) -> None:
    for form, column in (("damped", "triangle"), ("plain", "triangle~plain")):
        a, b = ours.scores(column=column), theirs.scores(column=column)
        assert a.keys() == b.keys()
        difference = np.array([a[i] - b[i] for i in a])
        size = np.sqrt(np.mean(np.square(list(b.values()))))
        assert np.abs(difference).max() < SCORE16 * size, "a score depends on how the work was cut"
        for end in ("top", "bottom"):
            ids = [[r["sample_id"] for r in found.top(form=form, end=end)[:10]] for found in (ours, theirs)]
            assert ids[0] == ids[1], "the ranking depends on how the work was cut"


def parts(found: Found) -> dict[str, str]:
    return {p["name"]: p["sha256"] for p in found.manifest["parts"]}


def timeless(found: Found) -> dict[str, str]:
    return {n: f["sha256"] for n, f in found.manifest["files"].items() if any(word in n for word in TIMELESS)}


@pytest.mark.parametrize(
    "changed",
    [("data.shard_rows=16", "model.batch=7"), pytest.param(("data.shard_rows=5",), marks=pytest.mark.soak)],
    ids=str,
)
def test_neither_batch_nor_shard_size_changes_the_answer(world, baseline, tmp_path, changed):
    assert_same_answer(world.audit(tmp_path, *changed), baseline)


def test_two_stores_hold_the_same_bytes(world, baseline, tmp_path):
    again = world.audit(tmp_path)
    assert parts(again) == parts(baseline), (
        "something but the shard went into a part: a clock, a host, a path, an order"
    )
    assert timeless(again) == timeless(baseline)


def test_the_order_of_the_work_changes_no_byte(world, baseline, tmp_path):
    p = prepare(world.config(tmp_path))
    mapper = ExecutorMapper(RunConfig(), p.audit)
    mapper.__dict__["executor"] = Backwards()
    run = AuditRun(p, mapper)
    publish_audit(run, run_stages(run))
    backwards = Found(tmp_path, "first")
    assert parts(backwards) == parts(baseline)
    assert timeless(backwards) == timeless(baseline), "a sum or a tally follows the order in which shards ended"


@pytest.mark.soak
@pytest.mark.usefixtures("own_ray")
def test_two_workers_on_ray_write_the_same_bytes_as_this_process(world, baseline, tmp_path):
    found = world.audit(tmp_path, "cluster=local", "cluster.workers=2")
    assert found.code == 0
    assert parts(found) == parts(baseline), "workers and the serial executor differ: threads, code, or settings"
    assert timeless(found) == timeless(baseline)


@pytest.mark.soak
@pytest.mark.usefixtures("own_ray")
def test_a_worker_with_another_copy_of_the_code_is_refused(world, tmp_path, monkeypatch, capsys):
    package = CONF.parent / "concept_trak"
    stale = shutil.copytree(package, tmp_path / "old" / "concept_trak", ignore=shutil.ignore_patterns("__pycache__"))
    with open(stale / "noise.py", "a") as file:
        file.write("#")
    monkeypatch.chdir(tmp_path / "old")  # Ray looks in the driver's folder before PYTHONPATH
    configs = world.configs(tmp_path / "store", "cluster=local", "cluster.workers=1")
    assert ended(lambda: audit(*configs)) == 2
    said = capsys.readouterr().err
    assert f"would run concept_trak from {stale}" in said
    assert f"the driver runs {package}" in said
    assert "remove the installed copy or start from the same working directory" in said
    assert not [name for name in files_under(tmp_path / "store") if "/parts/" in name], "older code computed a feature"
