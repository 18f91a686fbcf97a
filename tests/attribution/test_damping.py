"""The choice of a damping: on closed forms, on scores whose agreement is known, and where nothing can be chosen."""

import pytest
import torch

from concept_trak.attribution.damping import (
    DAMPINGS,
    DampingChoice,
    DampingPoint,
    agreement_of_halves,
    damping_curve,
    most_separating_damping,
    query_halves,
    score_correlations,
    why_default,
)
from concept_trak.attribution.fisher import gram
from tests.tolerances import EXACT64


def rows(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_halves_of_a_concept_are_disjoint_and_weigh_every_phrasing_alike():
    phi = torch.arange(5.0)[:, None].expand(5, 3)
    assert query_halves(phi)[:, 0].tolist() == [2, 2]  # 0, 2, 4 and 1, 3
    assert query_halves(phi, phrasings=2)[:, 0].tolist() == [(2 + 1) / 2, (2 + 3) / 2]  # (0, 4), 1 and 2, 3
    assert query_halves(phi[:1]) is None
    assert query_halves(phi[:3], phrasings=2) is None, "one phrasing has one sample"


def test_agreement_is_the_mean_of_the_correlations_written_out():
    values = rows(30, 6).cumsum(1) + 5
    r = torch.corrcoef(values.T)
    within, between = agreement_of_halves(score_correlations(values))
    assert within == pytest.approx(torch.stack([r[0, 1], r[2, 3], r[4, 5]]).mean().item(), abs=EXACT64)
    pairs = [(i, j) for i in range(6) for j in range(6) if i // 2 != j // 2]
    assert between == pytest.approx(sum(r[i, j].item() for i, j in pairs) / len(pairs), abs=EXACT64)


def test_what_all_scores_share_is_no_agreement():
    values = 1e3 + rows(2000, 4)
    within, between = agreement_of_halves(score_correlations(values))
    assert abs(within) < 0.1
    assert abs(between) < 0.1


def test_a_constant_column_agrees_with_none():
    values = torch.cat([torch.ones(10, 2), rows(10, 2)], 1)
    within, between = agreement_of_halves(score_correlations(values.double()))
    assert between == 0
    assert torch.isfinite(torch.tensor(within))


def test_the_curve_of_an_orthogonal_design_in_closed_form():
    """With K diagonal, scores are Phi diag(1 / (K_j + lambda)) q. Orthogonal, centred columns: correlations by hand."""
    design = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double() * torch.tensor([9.0, 1.0, 1.0])
    k, halves = gram(design), [torch.tensor([[3.0, 1, 0], [3, 1, 0]]), torch.tensor([[3.0, 0, 1], [3, 0, 1]])]
    curve = damping_curve(k, [h.double() for h in halves], lambda: design, design, torch.ones(4).double())
    eigenvalues = k.matrix.diagonal()
    for point in curve:
        first, second = (eigenvalues.sqrt() * h[0] / (eigenvalues + k.damped(point.damping)) for h in halves)
        cosine = (first @ second / first.norm() / second.norm()).item()
        assert point.within == pytest.approx(1, abs=EXACT64)
        assert point.between == pytest.approx(cosine, abs=EXACT64)
    assert most_separating_damping(curve) == min(DAMPINGS), "the direction that both share is the strongest"


def test_noise_in_weak_directions_asks_for_more_damping():
    """Halves that agree in strong directions, one for each concept, and differ in many weak ones."""
    strong, weak, n = 4, 60, 400
    design = torch.cat([3 * rows(n, strong), 0.1 * rows(n, weak, seed=1)], 1)
    halves = []
    for concept in range(strong):
        half = torch.zeros(2, strong + weak, dtype=torch.float64)
        half[:, concept] = 1
        half[:, strong:] = rows(2, weak, seed=2 + concept)
        halves.append(half)
    curve = damping_curve(gram(design), halves, lambda: design, design, torch.ones(n).double())
    separations = [point.separation for point in curve]
    assert most_separating_damping(curve) >= 100
    assert separations[0] < 0.5 * max(separations)


def test_of_equal_separations_the_strongest_damping_is_chosen():
    curve = [DampingPoint(1.0, 0.5, 0.25), DampingPoint(10.0, 0.75, 0.5), DampingPoint(100.0, 0.125, 0.0)]
    assert most_separating_damping(curve) == 10


@pytest.mark.parametrize(
    ("halves", "reason"),
    [([1], "there is one concept"), ([1, None], "fewer than two concepts have two samples"), ([1, None, 1], "")],
)
def test_it_says_why_it_cannot_choose(halves, reason):
    assert why_default(halves).startswith(reason)
    assert bool(why_default(halves)) == bool(reason)


def test_reliability_is_that_of_twice_as_many_samples():
    """Of signal + noise of equal variance: halves correlate 1/2, and 2/3 of the variance of their mean is signal."""
    signal, noise = rows(200_000, 1), rows(200_000, 2, seed=1)
    r = score_correlations(signal + noise)[0, 1].item()
    choice = DampingChoice(10.0, (DampingPoint(1.0, 0.0, 0.0, (0.0,)), DampingPoint(10.0, r, 0.0, (r,))))
    whole = signal[:, 0] + noise.mean(1)
    assert choice.reliability[0] == pytest.approx((signal.var() / whole.var()).item(), abs=0.01)
    assert DampingChoice(100.0, reason="one concept").reliability == ()
