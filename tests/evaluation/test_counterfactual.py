"""The causal test: its measures by hand, its files by what decides them, and a small run from a ranking to a page."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import pytest
import torch

from cluster.executor import Attempt
from concept_trak.data.benchmarks.synthetic import draw_labelled
from concept_trak.data.benchmarks.two_factors import SHAPES2
from concept_trak.evaluation import judge
from concept_trak.evaluation.counterfactual import (
    CounterfactualConfig,
    RetrainSettings,
    RetrainTask,
    RetrainWorker,
    measure_effect,
    pictures_from_parquet,
    pictures_to_parquet,
    ranking_heads,
    removals_of,
)
from concept_trak.evaluation.retrieval import Cell
from concept_trak.evaluation.training.settings import TrainConfig
from concept_trak.models.classifier import Classifier
from concept_trak.report.benchmark_page import TOPS
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet
from jobs.counterfactual import counterfactual
from jobs.execute import ClusterConfig, RunConfig
from tests.report.outline import parse

SERIAL = RunConfig(ClusterConfig(kind="serial"))

MADE = TrainConfig(
    set="shapes2", network="transformer", resolution=16, images=24, steps=2, warm_up=1, batch=2, dropped=0.0
)
RED = Cell(("triangle", "red"), "colour", True)
DRAWN = [draw_labelled(0, i, SHAPES2, 16) for i in range(24)]
REDS = [d.id for d in DRAWN if d.image_pair[1] == "red"]
FIRST = Attempt(1, 0)


class Seeing(Classifier):
    """Sees a colour by the first channel, red where it is above 0, and a triangle everywhere; both surely."""

    def forward(self, pixels):
        red = 100.0 * pixels[:, 0].mean((1, 2)).sign()
        return torch.tensor([[100.0, 0.0]]).repeat(len(pixels), 1), torch.stack([red, -red], 1)


def pictures(red: float, blue: float) -> dict:
    return {pair: torch.full((3, 3, 4, 4), red if pair[1] == "red" else blue) for pair in SHAPES2.all_pairs}


def test_an_effect_is_what_it_is_by_hand():
    """Red prompts turn from 0.5 to -0.5, the others move by 0.1: sqrt(48) per unit, for 48 numbers a picture."""
    effect = measure_effect(RED, SHAPES2, Seeing(SHAPES2), pictures(0.5, -0.5), pictures(-0.5, -0.6))
    assert effect.moved == pytest.approx((1.0 - 0.1) * 48**0.5)
    assert (effect.present_control, effect.present, effect.lost) == (1, 0, 1)
    assert (effect.kept_other_control, effect.kept_other) == (1, 1), (
        "the others are asked about red, not what they name"
    )


def test_nothing_left_out_is_no_effect():
    effect = measure_effect(RED, SHAPES2, Seeing(SHAPES2), pictures(0.5, -0.5), pictures(0.5, -0.5))
    assert (effect.moved, effect.lost) == (0, 0)


def test_pictures_come_back_as_they_were():
    made = {pair: torch.rand(2, 3, 4, 5) for pair in SHAPES2.all_pairs}
    effect = pictures_from_parquet(pictures_to_parquet(made))
    assert list(effect) == list(made)
    assert all(torch.equal(effect[pair], made[pair]) for pair in made)


def test_a_file_is_named_by_what_decides_its_pictures():
    settings, item = RetrainSettings("/s", "b", MADE, 2), RetrainTask(1, ("a", "b"))
    name = settings.file(item)
    for alike in (
        replace(settings, threads=9),
        replace(settings, training=replace(MADE, refresh=1.0, out="x", seed=0)),
    ):
        assert alike.file(item) == name
    others = [
        settings.file(RetrainTask(2, ("a", "b"))),
        settings.file(RetrainTask(1, ("a",))),
        settings.file(RetrainTask(1)),
        replace(settings, samples=3).file(item),
        replace(settings, training=replace(MADE, steps=3)).file(item),
        replace(settings, training=replace(MADE, seed=1)).file(item),
        name,
    ]
    assert len(set(others)) == len(others), "other pictures under one name"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> CounterfactualConfig:
    """A model's folder as far as the test reads it, and a ranking of all reds first and one that knows nothing."""
    root = tmp_path_factory.mktemp("toy")
    settings = {name: value for name, value in asdict(MADE).items() if name != "out"}
    (root / "model").mkdir()
    (root / "model/training.json").write_text(json.dumps({"settings": settings}))
    torch.manual_seed(0)
    judge.save_classifier(Classifier(SHAPES2), root / "model/classifier.safetensors")
    rankings = {"lookup": REDS, "random": sorted(d.id for d in DRAWN)[: len(REDS)]}
    rows = [
        {"set": "shapes2", "model": f"{root}/model", "method": ranker, "query_kind": "none", "concept": cell,
         "damping": 1.0, "scored": 24, "rank": rank, "sample_id": i}
        for ranker, ids in rankings.items()
        for cell in (RED.name, "triangle_in_red_triangle")
        for rank, i in enumerate(ids, 1)
    ]  # fmt: skip
    Store(f"{root}/store").replace("benchmarks/toy/tops.parquet", to_parquet(from_rows(TOPS, rows[::-1])))
    return CounterfactualConfig(
        store=f"{root}/store", folder=f"{root}/model", rankers=("lookup", "random"), shares=(0.5, 1.0), seeds=(1,),
        samples=2,
    )  # fmt: skip


def test_a_removal_leaves_out_the_first_of_its_ranking(toy):
    removals = removals_of(toy, MADE, ranking_heads(toy, MADE, Store(toy.store)))
    assert len(removals) == 2 * 2 * 2
    (half,) = [c for c in removals if (c.ranker, c.cell, c.share) == ("lookup", RED, 0.5)]
    assert half.retraining.without == tuple(sorted(REDS[: round(len(REDS) / 2)]))
    assert half.carriers == len(REDS)


def test_a_small_test_from_rankings_to_a_page_and_nothing_twice(toy, capsys):
    small = replace(toy, shares=(1.0,))
    assert counterfactual(small, SERIAL) == 0
    folder = Path(toy.store) / "benchmarks/toy"
    kept = {p: p.stat().st_mtime_ns for p in (folder / "retrained").iterdir()}
    assert len(kept) == 3, "both concepts have one ranking here: a control and two retrainings"
    rows = duckdb.sql(f"select ranker, concept, removed, moved, lost from '{folder}/counterfactual.parquet'").fetchall()
    assert {(ranker, concept) for ranker, concept, *_ in rows} == {
        (ranker, cell) for ranker in small.rankers for cell in (RED.name, "triangle_in_red_triangle")
    }
    assert all(removed == len(REDS) and moved != 0 for _, _, removed, moved, _ in rows)
    page = parse((folder / "counterfactual.html").read_text())
    assert len(page.all("table", "numbers")[1].all("tbody")[0].all("tr")) == len(rows), "a retraining is not shown"
    assert counterfactual(small, SERIAL) == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "retrained").iterdir()} == kept
    assert "3 models, 0 of them to train" in capsys.readouterr().out


def test_a_retraining_is_the_same_wherever_it_is_done(toy, tmp_path):
    both = [RetrainSettings(f"{tmp_path}/{i}", "b", MADE, 1) for i in range(2)]
    one, two = (Store(b.store).read(RetrainWorker(b)(RetrainTask(1, tuple(REDS)), FIRST).file) for b in both)
    assert one == two, "something besides the keys decides a retraining"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "other"}, "other/tops.parquet does not exist; run python -m jobs.benchmark name=other first"),
        ({"folder": "elsewhere"}, "is not a model of the benchmark toy"),
        ({"rankers": ("trak",)}, "rankers: the benchmark has no 'trak'; expected some of: "),
        ({"pairs": ("a blue circle",)}, "the benchmark has no such pair of shapes2"),
        ({"pairs": ("a green circle",)}, "the benchmark has no such pair of shapes2"),
    ],
)
def test_what_is_not_there_is_said(toy, change, says):
    config = replace(toy, **change)
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        removals_of(config, MADE, ranking_heads(config, MADE, Store(toy.store)))


def test_a_benchmark_of_a_part_of_the_images_is_refused(toy):
    with pytest.raises(ValueError, match="scored 24 of the 99 training images; expected all"):
        ranking_heads(toy, replace(MADE, images=99), Store(toy.store))


@pytest.mark.parametrize("wrong", [{"shares": (0.0,)}, {"shares": (1.2,)}, {"seeds": ()}, {"samples": 0}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|must each have an entry"):
        CounterfactualConfig(**wrong)
