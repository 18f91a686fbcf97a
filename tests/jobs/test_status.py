"""Where an audit is, told from its files alone: before, during, after, and when there is none."""

import json
from dataclasses import replace

import pytest

from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.prepare import prepare
from jobs.execute import ExecutorMapper
from jobs.status import StatusConfig, status
from tests.jobs.world import altered


def told(capsys, store, audit="") -> str:
    assert status(StatusConfig(store=str(store), audit=audit)) == 0
    return capsys.readouterr().out


def test_from_begun_through_features_to_finished(world, tmp_path, capsys):
    def spoil(rows):
        rows[1]["image"]["bytes"] = b"no image"

    data = altered(world, tmp_path / "one-broken", spoil)
    store = tmp_path / "store"
    config, run = world.configs(store, f"data.uri={data}", "budget.rejects=0.5")
    prepared = prepare(config)
    assert told(capsys, store) == "first: begun, nothing computed yet; the same command resumes it\n"

    AuditRun(prepared, ExecutorMapper(replace(run, interval=0.0), prepared.audit), most_rejects=0.5).featurize()
    capsys.readouterr()
    lines = told(capsys, store, "first").splitlines()
    assert lines[0].startswith("first: not finished, last seen in featurize")
    assert "2 of 2 done, 1 rejected" in lines[1]
    assert "samples/s" in lines[1]

    world.audit(store, f"data.uri={data}", "budget.rejects=0.5")
    capsys.readouterr()
    assert "2 parts, 15 features, 1 rejects" in told(capsys, store)


def test_failed_items_are_counted_and_their_logs_are_in_the_store(world, tmp_path, capsys):
    """A source that vanishes while the audit runs: every shard of it fails."""
    data = altered(world, tmp_path / "leaving", lambda rows: None)
    config, run = world.configs(tmp_path / "store", f"data.uri={data}")
    prepared = prepare(config)
    (data / "train.parquet").unlink()
    with pytest.raises(RuntimeError, match="now gone; start a new audit"):
        AuditRun(prepared, ExecutorMapper(replace(run, interval=0.0), prepared.audit), most_rejects=0.5).featurize()
    capsys.readouterr()
    assert "0 of 2 done, 2 failed" in told(capsys, tmp_path / "store")
    logs = sorted((tmp_path / "store/audits/first/failures/featurize").iterdir())
    assert len(logs) == 2
    assert all(shard.name in "".join(log.name for log in logs) for shard in prepared.plan)
    assert "Traceback" in logs[0].read_text()


def test_counters_of_every_stage_stand_in_the_metrics(baseline):
    stages = json.loads((baseline.folder / "metrics.json").read_text())["stages"]
    assert set(stages) == {"index", "ids", "featurize", "gram", "query", "solve", "score", "aggregate", "rank", "look"}
    assert stages["featurize"]["samples"] == stages["score"]["samples"] == 48
    assert all(s["done"] == s["of"] and s["failed"] == s["retries"] == 0 for s in stages.values())


def test_what_is_not_there_is_said_with_what_is(baseline, tmp_path):
    with pytest.raises(ValueError, match="has no audit 'second'; it has: first"):
        status(StatusConfig(store=str(baseline.store), audit="second"))
    with pytest.raises(ValueError, match="holds no audits"):
        status(StatusConfig(store=str(tmp_path)))
