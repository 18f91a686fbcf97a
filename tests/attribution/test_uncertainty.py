"""Intervals of scores: against scipy's quantiles, and by how often they hold the value that more samples would give."""

import pytest
import torch
from scipy import stats

from concept_trak.attribution.uncertainty import score_intervals, student_quantile


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
