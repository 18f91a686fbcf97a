"""A benchmark of the sets whose captions use other words, or name one of two shapes, from training to table."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from concept_trak.evaluation.suite import BenchmarkConfig
from concept_trak.evaluation.training.benchmark_models import run_record, train_model
from concept_trak.evaluation.training.settings import TrainConfig
from jobs.benchmark import BenchmarkRunConfig, benchmark
from jobs.execute import ClusterConfig
from tests.configured import configure


@pytest.mark.parametrize("name", ["synonyms", pytest.param("two_shapes", marks=pytest.mark.soak)])
def test_lookup_finds_what_captions_name_and_every_ranking_is_graded_on_the_others_too(name, tmp_path):
    model = TrainConfig(out=str(tmp_path / "model"), set=name, network="transformer", resolution=16, steps=0)
    train_model(model, Path(model.out), print)
    Path(model.out, "training.json").write_text(json.dumps(run_record(model)))
    keys = (
        f"models=[{model.out}]", "method=[caption_trak]", "reference=caption_trak", "rows=40", "queries=2",
        "pairs=[a blue square]", "dampings=[100]", "parameters=attn2.*weight", "projector.dim=64", f"store={tmp_path}",
    )  # fmt: skip
    run = BenchmarkRunConfig(cluster=ClusterConfig(kind="serial"))
    assert benchmark(configure(BenchmarkConfig, "benchmark", list(keys)), run) == 0
    table = pq.read_table(tmp_path / "benchmarks/benchmark/leaderboard.parquet").to_pylist()
    gains = {line["ranker"]: (line["gain_named"], line["gain_unnamed"]) for line in table}
    assert {"caption_trak", "lookup", "words", "pixels", "style", "random"} <= gains.keys()
    assert all(math.isfinite(value) for values in gains.values() for value in values)
    named, unnamed = gains["lookup"]
    assert named > max(0.25, unnamed + 0.15), "a search of captions finds as much of what they do not name"
