"""What groups of a query's samples say of its scores: against sorts and sums over all samples at once."""

import numpy as np
import pytest
import torch
from scipy import stats

from concept_trak.attribution.ranking import SPAN, SampleRows, TopK
from concept_trak.audit.score_spread import GroupSummary, QuerySpread, certainty

N, K, M = 60, 8, 5


def ends(values: torch.Tensor, first: int, m: int = M) -> TopK:
    entries, top = [(float(v), f"s{first + i}", "part") for i, v in enumerate(values)], TopK(m)
    top.add_best(entries)
    top.add_worst(entries)
    return top


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread_of(phi: torch.Tensor, z: torch.Tensor, pieces: int = 1, first: int = 0) -> QuerySpread:
    summary, samples = GroupSummary(M, [None, z]), SampleRows()
    top = ends(phi @ z.mean(0), first)
    for start, rows in zip(range(0, len(phi), len(phi) // pieces), phi.chunk(pieces), strict=True):
        summary.add(rows @ z.T)
        samples.add([f"s{first + start + i}" for i in range(len(rows))], "part")
    rows = {entry[1]: int(entry[1][1:]) - first for entry in top.top + top.bottom}
    nothing, spread = summary.spreads([rows] * 2, [1.0, 2.0], samples)
    assert nothing is None
    assert spread is not None
    return spread


@pytest.fixture(scope="module")
def phi() -> torch.Tensor:
    return normal(N, K, seed=0)


def test_the_spread_of_all_samples_is_that_of_its_parts(phi):
    """In any order, and however the rows are cut."""
    z = normal(4, K, seed=1)
    whole, groups = spread_of(phi, z, pieces=3), phi @ z.T
    top = ends(groups.mean(1), 0)
    kept = {entry[1] for entry in top.top + top.bottom}
    halves = [spread_of(phi[first : first + 30], z, first=first) for first in (30, 0)]
    for spread in (whole, halves[0].merged(halves[1], kept)):
        assert spread.groups.keys() == kept
        for sample, values in spread.groups.items():
            np.testing.assert_allclose(values, groups[int(sample[1:])], rtol=1e-5, atol=1e-6)
        a, b = groups[:, 0::2].mean(1), groups[:, 1::2].mean(1)
        for half, scores in zip(spread.halves, (a, b), strict=True):
            assert [entry[1] for entry in half.top] == [f"s{i}" for i in scores.argsort(descending=True)[:M]]
        r = (np.corrcoef(groups.T).sum() - 4) / 12
        assert r > 0
        assert spread.reliability == pytest.approx(4 * r / (1 + 3 * r), rel=1e-4)
        assert spread.noise == pytest.approx(float((a - b).abs().max() / 2), rel=1e-5)
        assert spread.reach == 2 * SPAN


def test_an_interval_is_students_about_the_score(phi):
    z = normal(4, K, seed=1)
    spread, groups = spread_of(phi, z), phi @ z.T
    sample = next(iter(spread.groups))
    values = groups[int(sample[1:])].double().numpy()
    low, high = stats.t.interval(0.9, 3, loc=7.0, scale=stats.sem(values))
    assert spread.interval(sample, 7.0) == pytest.approx((low, high), rel=1e-3)


def test_a_query_of_noise_is_not_relied_on_and_one_that_repeats_itself_is(phi):
    signal = normal(1, K, seed=2)
    for noise, least, most in ((0.01, 0.99, 1.0), (30.0, 0.0, 0.6)):
        z = signal + noise * normal(4, K, seed=4)
        spread = spread_of(phi, z)
        own = certainty(spread, [e[0] for e in ends(phi @ z.mean(0), 0).top], 100)
        assert least <= own.reliability <= most
        assert (own.of, own.by_chance) == (M, M * M / N)
        assert (own.above_noise == M and own.shared == M) == (noise < 1)
    assert own.above_noise < M


def test_a_division_into_halves_that_agree_hides_no_groups_that_do_not(phi):
    """Two groups follow one direction and two another, one of each in either half."""
    first, second = torch.eye(K)[:2]
    spread = spread_of(phi, torch.stack([first, first, second, second]))
    assert [entry[1] for entry in spread.halves[0].top] == [entry[1] for entry in spread.halves[1].top]
    r = (1 + 2 * np.corrcoef(phi[:, :2].T)[0, 1]) / 3
    assert spread.reliability == pytest.approx(4 * r / (1 + 3 * r), rel=1e-4)
    assert spread.reliability < 0.75
    assert spread_of(phi, first.expand(4, K)).reliability == pytest.approx(1)


def test_concepts_of_one_question_may_have_other_numbers_of_groups(phi):
    """Two examples make two groups, sixteen samples make four."""
    alone = [spread_of(phi, normal(groups, K, seed=groups)) for groups in (2, 4)]
    z = [normal(groups, K, seed=groups) for groups in (2, 4)]
    summary, samples = GroupSummary(M, z), SampleRows()
    summary.add(phi @ torch.cat(z).T)
    samples.add([f"s{i}" for i in range(N)], "part")
    rows = [{sample: int(sample[1:]) for sample in spread.groups} for spread in alone]
    together = summary.spreads(rows, [2.0, 2.0], samples)
    for one, both in zip(alone, together, strict=True):
        assert both is not None
        assert both.reliability == pytest.approx(one.reliability, rel=1e-6)
        assert both.groups.keys() == one.groups.keys()
