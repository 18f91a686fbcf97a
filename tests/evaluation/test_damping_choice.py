"""What the damping chosen without labels is worth: from grades, beside the default's and the best one's."""

import numpy as np
import pytest
import torch

from concept_trak.attribution.damping import agreement_of_halves, score_correlations
from concept_trak.data.benchmarks.two_factors import SHAPES3
from concept_trak.evaluation.damping_choice import damping_lines, query_separation
from concept_trak.evaluation.leaderboard import Ranker
from concept_trak.evaluation.retrieval import cells
from concept_trak.report.benchmark_page import dampings_as_text
from tests.report import leaderboards

FIT = Ranker("fit_trak", "own")


@pytest.fixture(scope="module")
def grades():
    return leaderboards.grades(SHAPES3)


def line_of(lines, ranker=FIT):
    return next(line for line in lines if line.ranker == ranker)


def gains(grades, damping, models=leaderboards.MODELS):
    own = [row for row in grades if (row["method"], row["query_kind"], row["flipped"]) == FIT]
    return [r["average_precision"] - r["base_rate"] for r in own if r["damping"] == damping and r["model"] in models]


def test_each_model_has_the_damping_that_separates_best_there(grades):
    wanted = {model: damping for model, damping in zip(leaderboards.MODELS, (1.0, 100.0, 10000.0), strict=False)}
    marked = [row | {"separation": float(row["damping"] == wanted.get(row["model"]))} for row in grades]
    line = line_of(damping_lines(marked, cells(SHAPES3), FIT))
    assert line.dampings == tuple(wanted[model] for model in leaderboards.MODELS)
    expected = [gain for model in leaderboards.MODELS for gain in gains(grades, wanted[model], (model,))]
    assert line.chosen[0] == pytest.approx(np.mean(expected))
    assert line.default[0] == pytest.approx(np.mean(gains(grades, 100.0)))
    assert line.best[0] == pytest.approx(max(np.mean(gains(grades, d)) for d in leaderboards.DAMPINGS))
    assert line.default[1] <= line.default[0], "the worst cell is above the mean"


def test_the_plain_product_and_flipped_signs_are_never_chosen(grades):
    lines = damping_lines(grades, cells(SHAPES3), FIT)
    assert all(np.isfinite(line.dampings).all() and not line.ranker.flipped for line in lines)
    assert {line.ranker.query_kind for line in lines} == {"own", "concept"}, "baselines have no damping"


def test_separation_is_that_of_the_halves_of_the_queries():
    values = np.random.default_rng(0).normal(size=(40, 8)).cumsum(1)
    halves = np.stack([values[:, first : first + 4][:, half::2].mean(1) for first in (0, 4) for half in (0, 1)], 1)
    within, between = agreement_of_halves(score_correlations(torch.from_numpy(halves)))
    assert query_separation(values, 2) == pytest.approx(within - between)
    assert np.isnan(query_separation(values, 8)), "one query has no halves"
    assert np.isnan(query_separation(values, 1)), "there is nothing to tell apart"


def test_the_table_says_what_was_chosen(grades):
    lines = damping_lines(grades, cells(SHAPES3), FIT)
    text = dampings_as_text("shapes3", lines)
    row = next(line for line in text.splitlines() if line.startswith("| fit_trak |"))
    fit = line_of(lines)
    assert f"{fit.chosen[0]:+.3f} ({fit.chosen[1]:+.3f})" in row
    assert f"{fit.best_damping:g}: {fit.best[0]:+.3f}" in row
    assert text.count("\n| ") == 1 + len(lines)
    assert "| +0.000 to +0.000 |" in row, "the reference is compared with another than itself"


def test_rankers_are_compared_at_their_own_dampings(grades):
    lines = {line.ranker: line for line in damping_lines(grades, cells(SHAPES3), FIT)}
    for ranker, line in lines.items():
        difference = lines[FIT].chosen[0] - line.chosen[0]
        assert line.gap[0] <= difference <= line.gap[1], f"{ranker}: {line.gap} misses {difference}"
    assert any(line.gap[0] > 0 for line in lines.values())
    absent = damping_lines(grades, cells(SHAPES3), Ranker("lookup", "none"))
    assert all(np.isnan(line.gap).all() for line in absent)
