"""Intervals of scores: against scipy's quantiles, and by how often they hold the value that more samples would give."""

import pytest
import torch
from scipy import stats

from concept_trak.attribution.uncertainty import (
    example_groups,
    independent_features,
    query_groups,
    rank_interval,
    score_intervals,
    student_quantile,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 15, 63])
@pytest.mark.parametrize("p", [0.75, 0.95])
def test_the_quantile_is_students(p, freedom):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-3)


def test_an_interval_of_one_phrasing_is_scipys():
    values = drawn(5, 8)
    found = score_intervals(values)
    low, high = stats.t.interval(0.9, 7, loc=values.mean(1), scale=stats.sem(values, axis=1))
    torch.testing.assert_close(found.low, torch.from_numpy(low), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.high, torch.from_numpy(high), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("m", "phrasings"), [(4, 1), (16, 1), (9, 2)])
def test_nine_of_ten_intervals_hold_the_true_mean(m, phrasings):
    """Samples spread by unlike amounts about means that differ by phrasing: .02 is four deviations of their number."""
    n = 4000
    truth = 5 * drawn(n, 1, seed=1)
    offset = torch.tensor([(-1.0) ** (i % phrasings) * (phrasings > 1) for i in range(m)])
    found = score_intervals(truth + offset + drawn(n, 1, seed=2).exp() * drawn(n, m, seed=3), phrasings)
    held = ((found.low <= truth[:, 0]) & (truth[:, 0] <= found.high)).double().mean().item()
    assert 0.88 < held < 0.92


def test_one_sample_of_a_phrasing_has_no_interval():
    for values, phrasings in ((drawn(3, 1), 1), (drawn(3, 3), 2)):
        found = score_intervals(values, phrasings)
        assert torch.isfinite(found.mean).all()
        assert torch.isnan(torch.cat([found.low, found.high])).all()


@pytest.mark.parametrize(("examples", "groups"), [(4, 4), (8, 4), (3, 3)])
def test_nine_of_ten_intervals_hold_the_mean_of_more_examples(examples, groups):
    """Examples whose scores spread 3 times as far as samples do; 12 samples, each of the mean example of its group."""
    m, n = 12, 4000
    truth, by_example = drawn(n, seed=1), 3 * drawn(examples, n, seed=2)
    assert example_groups(examples, m) == groups
    means = torch.stack([by_example[group::groups].mean(0) for group in range(groups)])
    phi = truth + means[[i % groups for i in range(m)]] + drawn(m, n, seed=3)
    held = {}
    for name, own in (("groups", independent_features(phi, examples)), ("samples", phi)):
        interval = score_intervals(own.T)
        held[name] = ((interval.low <= truth) & (truth <= interval.high)).double().mean().item()
    assert 0.88 < held["groups"] < 0.92
    assert held["samples"] < 0.8, "samples that share an example are no independent ones"


def test_a_lone_example_is_that_of_every_sample():
    phi = drawn(16, 3)
    assert [example_groups(examples, 16) for examples in (0, 1, 2, 3, 4, 100)] == [0, 1, 2, 3, 4, 4]
    assert example_groups(9, 2) == 2
    assert len(query_groups(phi, 1, example_groups(1, 16))) == 4
    assert len(query_groups(phi, 1, example_groups(2, 16))) == 2
    assert independent_features(phi, 1) is phi
    assert independent_features(phi[:1], 5).shape == (1, 3)


def test_groups_are_disjoint_and_weigh_every_phrasing_alike():
    phi = torch.arange(10.0)[:, None]
    assert query_groups(phi)[:, 0].tolist() == [(0 + 4 + 8) / 3, (1 + 5 + 9) / 3, 4, 5]
    assert query_groups(phi, phrasings=5)[:, 0].tolist() == [2, 7]  # 0 ... 4, and 5 ... 9
    assert query_groups(phi[:9], phrasings=5) is None, "one phrasing has one sample"


@pytest.mark.parametrize("kept", [0, 40, 300])
def test_the_ranks_of_an_interval_hold_those_among_all_scores(kept):
    """Exact among the best that are known; beyond, bounded by the bins of the histogram."""
    scores = sorted(drawn(300).tolist(), reverse=True)
    edges = torch.linspace(-2, 2, 81, dtype=torch.float64)
    bins = (torch.bucketize(torch.tensor(scores, dtype=torch.float64), edges, right=True) - 1).clamp(0, 79)
    counts = torch.bincount(bins, minlength=80).tolist()
    for rank in (1, 7, 40, 150, 300):
        low, high = scores[rank - 1] - 0.3, scores[rank - 1] + 0.3
        first, last = 1 + sum(s > high for s in scores), sum(s > low for s in scores)
        found = rank_interval((low, high), rank, scores[:kept], counts, 2.0)
        assert found[0] <= first <= rank <= last <= found[1]
        if kept == 300 or last < kept:
            assert found == (first, last)
        assert found[1] - found[0] <= last - first + 2 * max(counts[1:-1]) + counts[0] * (rank > 280) + counts[-1]
    tied = rank_interval((1.0, 1.0), 3, [1.0, 1.0, 1.0], [0, 3], 2.0)
    assert tied == (1, 3), "a score without spread keeps its rank, and those that are equal are not above it"
