"""What is done is never done again: the same command, a new question, a grown data set, a data set that changed."""

import json
import os
import shutil

import pytest

from concept_trak import UserError
from concept_trak.audit.pipeline import AuditRun, Stopped
from concept_trak.audit.plan import shards
from concept_trak.audit.prepare import prepare
from concept_trak.config import DataConfig
from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.data.survey import indexed_here
from jobs.execute import ExecutorMapper
from jobs.status import StatusConfig, status
from tests.jobs.world import CONCEPT, RESOLUTION, World, files_under

OTHER = "{name: red, prompt: a red triangle, without_prompt: a triangle, samples: 2}"


@pytest.fixture
def copy(baseline, tmp_path):
    """The baseline's store, for a second audit on its features."""
    return shutil.copytree(baseline.store, tmp_path / "store", copy_function=shutil.copy2)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The store of a finished audit of two shards."""
    return world.audit(tmp_path_factory.mktemp("finished"), data="few").store


def only(files: dict[str, int], folder: str) -> dict[str, int]:
    return {name: time for name, time in files.items() if f"/{folder}/" in name}


def test_the_same_command_again_does_nothing_and_says_so(world, finished, capsys):
    before = files_under(finished)
    capsys.readouterr()
    assert world.audit(finished, data="few").code == 0
    assert files_under(finished) == before, "a finished audit was written to"
    said = capsys.readouterr().out
    assert "audit first is finished: nothing to compute, no gradient work done" in said
    assert "shapes-0000" in said, "the answer is shown again"


def test_an_audit_without_its_manifest_is_ended_without_gradient_work(world, finished, capsys):
    (finished / "audits/first/manifest.json").unlink()
    before = files_under(finished)
    capsys.readouterr()
    assert world.audit(finished, data="few").code == 0
    after = files_under(finished)
    assert {n for n in after if after[n] != before.get(n)} == {
        "audits/first/manifest.json", "audits/first/progress.json", "audits/index.html", "audits/index.json",
        "audits/latest.json",
    }  # fmt: skip
    assert "2 of 2 shards are done, no gradient work" in capsys.readouterr().out


@pytest.mark.parametrize("change", [f"concepts=[{CONCEPT},{OTHER}]", "damping=3"])
def test_a_new_question_reuses_every_feature(world, copy, capsys, change):
    before = files_under(copy / "features")
    found = world.audit(copy, change, "audit=second")
    assert files_under(copy / "features") == before, "a feature or a Gram was computed again"
    assert "6 of 6 shards are done, no gradient work" in capsys.readouterr().out
    assert {r["concept"] for r in found.top()} == ({"triangle", "red"} if "red" in change else {"triangle"})


def closing(uri: str, files: list, wanted: list[int]) -> None:
    """Give the files a modification time (their version) at which exactly the shards `wanted` end a Gram group."""
    for second in range(1_000_000_000, 1_000_100_000):
        for file in files:
            os.utime(file, (second, second))
        plan = shards(list(indexed_here(DataConfig(uri=uri)).sources), 8)
        if [i for i, shard in enumerate(plan) if int(shard.hash, 16) % 16 == 0] == wanted:
            return
    raise AssertionError("no such time")


@pytest.mark.soak
def test_a_grown_data_set_costs_what_grew(world, tmp_path, capsys):
    data, store = tmp_path / "shapes", tmp_path / "store"
    shutil.copytree(world.root / "shapes", data)
    closing(str(data), list(data.iterdir()), wanted=[3])
    world.audit(store, f"data.uri={data}")
    before = files_under(store / "features")
    assert (len(only(before, "parts")), len(only(before, "grams"))) == (6, 2)

    (new,) = write_synthetic(tmp_path / "more", 16, seed=0, files=1, resolution=RESOLUTION, first=48)
    shutil.move(new, data / "zuwachs.parquet")
    closing(str(data), [data / "zuwachs.parquet"], wanted=[3])
    capsys.readouterr()
    found = world.audit(store, f"data.uri={data}", "audit=grown")
    after = files_under(store / "features")
    assert before.items() <= after.items(), "a file of the smaller data set was written again"
    fresh = {name: after[name] for name in after.keys() - before.keys()}
    assert (len(only(fresh, "parts")), len(only(fresh, "commits"))) == (2, 2)
    assert len(only(fresh, "grams")) == 1, "of two groups only the last one has a new shard"
    assert "6 of 8 shards are done, 2 to compute" in capsys.readouterr().out
    assert len(found.scores()) == 64
    assert len(found.features()[0]) == 64


def changed(world: World, tmp_path) -> str:
    data = tmp_path / "shapes"
    shutil.copytree(world.root / "shapes", data)
    return str(data)


def test_a_source_that_changes_under_a_running_audit_stops_it(world, tmp_path):
    data = changed(world, tmp_path)
    config, run = world.configs(tmp_path / "store", f"data.uri={data}")
    prepared = prepare(config)
    os.utime(f"{data}/train-00001-of-00003.parquet", (1, 1))
    with pytest.raises(
        Stopped, match=r"train-00001-of-00003.parquet changed while the audit ran.*new audit"
    ) as stopped:
        AuditRun(prepared, ExecutorMapper(run, prepared.audit)).featurize()
    assert stopped.value.exit_code == 2


def test_an_audit_is_not_resumed_on_other_data(world, tmp_path):
    data = changed(world, tmp_path)
    config = world.config(tmp_path / "store", f"data.uri={data}")
    prepare(config)
    os.utime(f"{data}/train-00001-of-00003.parquet", (1, 1))
    with pytest.raises(ValueError, match=r"data of audit first changed since it began: .*train-00001.*new audit"):
        prepare(config)


@pytest.mark.parametrize(("name", "content"), [("metrics.json", None), ("top.parquet", None), ("top.parquet", b"PAR1"),
                                               ("metrics.json", b"{")])  # fmt: skip
def test_a_finished_audit_whose_results_are_gone_says_so(world, copy, name, content):
    file = copy / "audits/first" / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"audit first is finished, and a file of its results is gone or damaged \(.*jobs.v"
    ):
        world.audit(copy)


def test_hints_that_cannot_be_read_stop_nothing(world, copy, capsys):
    (copy / "audits/latest.json").write_text("[" * 100_000)
    assert world.audit(copy, "audit=second").code == 0
    assert json.loads((copy / "audits/latest.json").read_text())["audit"] == "second"
    (copy / "audits/second/manifest.json").unlink()
    for hint in ("[", "[]", "{}", "null", "[" * 100_000):
        (copy / "audits/second/progress.json").write_text(hint)
        capsys.readouterr()
        assert status(StatusConfig(str(copy), "second")) == 0
        assert "second: begun, nothing computed yet; the same command resumes it" in capsys.readouterr().out
