"""Comparisons of two rankings: against scipy, against all samples, and however the data are cut."""

import numpy as np
import pytest
import torch
from scipy import stats

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.audit.comparison import overlaps
from concept_trak.audit.results import Tally
from concept_trak.audit.score import ColumnEnds, ScoreResult
from concept_trak.audit.score_sample import SAMPLED, rank_correlation, sampled_scores
from concept_trak.config import AuditConfig, DataConfig
from tests.toys import top_k

RED = Concept("red", prompt="a red circle", without_prompt="a circle")
COLUMNS = ("red", "red~plain")


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    ranks = [stats.rankdata(values) for values in (first, second)]
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def test_ranks_are_correlated_as_by_scipy():
    """Few whole numbers, so that ties are many; samples that one side lacks do not count."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (2, 60)).astype(float)
    first = {f"s{i}": value for i, value in enumerate(a)}
    second = {f"s{i}": value for i, value in enumerate(b) if i < 50} | {"other": 1.0}
    correlation = rank_correlation(first, second)
    assert correlation is not None
    assert correlation.samples == 50
    assert correlation.value == pytest.approx(spearman(a[:50], b[:50]))
    reverse = rank_correlation(first, {name: -score for name, score in first.items()})
    assert reverse is not None
    assert reverse.value == pytest.approx(-1)


def test_without_an_order_there_is_no_correlation():
    order = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert rank_correlation(order, dict.fromkeys(order, 0.0)) is None
    assert rank_correlation(order, {"a": 1.0, "b": 0.0}) is None
    assert rank_correlation({}, {}) is None


def test_the_sample_is_of_all_and_does_not_depend_on_the_cuts():
    ids, values = [f"s{i}" for i in range(4000)], torch.arange(8000.0).view(4000, 2)
    whole = sampled_scores(ids, values, 4000)
    cut = sampled_scores(ids[:700], values[:700], 4000) | sampled_scores(ids[700:], values[700:], 4000)
    assert whole == cut
    assert abs(len(whole) - SAMPLED) < 5 * (SAMPLED * 0.75) ** 0.5
    assert abs(np.mean([int(name[1:]) for name in whole]) - 2000) < 5 * 1155 / SAMPLED**0.5
    assert all(scores == (2.0 * int(name[1:]), 2.0 * int(name[1:]) + 1) for name, scores in whole.items())
    assert len(sampled_scores(ids[:900], values[:900], 900)) == 900, "a small data set is not sampled"


def test_a_comparison_counts_what_is_shared_and_names_what_is_not():
    tally, scores = Tally(5), np.random.default_rng(1).normal(size=(2, 2, 40))
    for method, own in zip(("das", "trak"), scores, strict=True):
        for first in (0, 20):
            ids = [f"s{i}" for i in range(first, first + 20)]
            values = torch.from_numpy(own[:, first : first + 20].T).float()
            ends = [top_k(5, [(float(v), name, "p") for v, name in zip(c, ids, strict=True)]) for c in values.T]
            columns = {n: ColumnEnds(e.top, e.bottom, [0] * 80) for n, e in zip(COLUMNS, ends, strict=True)}
            tally.add(ScoreResult(method, columns, sample=sampled_scores(ids, values, 40)))
    config = AuditConfig(
        concepts=(RED,), methods={m: METHODS[m] for m in ("das", "trak")}, data=DataConfig("file:///d"), shown=3
    )
    forms, _, methods = overlaps(config, tally, RED)
    assert (forms.first, forms.second) == ("das, damped", "das, plain")
    assert (methods.first, methods.second) == ("das", "trak")
    tops = [[f"s{i}" for i in np.argsort(-own[0])[:3]] for own in scores]
    assert methods.of == 3
    assert methods.shared == len({*tops[0]} & {*tops[1]})
    assert methods.only_first == tuple(name for name in tops[0] if name not in tops[1])
    assert methods.only_second == tuple(name for name in tops[1] if name not in tops[0])
    assert methods.correlation == pytest.approx(spearman(scores[0, 0], scores[1, 0]))
    assert forms.correlation == pytest.approx(spearman(*scores[0]))
    assert methods.sampled == 40
