"""Streamed results against the whole: any split, ties included."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concept_trak.attribution.ranking import (
    BINS,
    QUERY_ROWS,
    WIDE_BYTES,
    ScoreSummary,
    TopK,
    average_precision,
    base_rate,
    precision_at,
    recall_at_carriers,
    scores,
    stored_scores,
    transposed_products,
)
from tests.tolerances import DENSE32
from tests.toys import histogram, top_k

values = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


@given(values, st.integers(1, 8), st.lists(st.integers(0, 40), max_size=5), st.randoms())
def test_topk_equals_a_full_sort_for_every_split(values, m, cuts, random):
    entries = [(v, f"id{i:02d}", "shard") for i, v in enumerate(values)]
    shuffled = random.sample(entries, len(entries))
    edges = [0, *sorted(min(c, len(values)) for c in cuts), len(values)]
    merged = TopK(m)
    for a, b in pairwise(edges):
        merged = merged + top_k(m, shuffled[a:b])
    assert merged.top == sorted(entries, key=lambda e: (-e[0], e[1]))[:m], (
        "best entries depend on the split or tie order"
    )
    assert merged.bottom == sorted(entries, key=lambda e: (e[0], e[1]))[:m]


@given(values, st.floats(0.1, 3))
def test_histograms_add_up_and_count_everything(values, scale):
    whole = histogram(torch.tensor(values), scale)
    parts = np.sum([histogram(torch.tensor([v]), scale) for v in values], 0)
    assert whole == parts.tolist()
    assert sum(whole) == len(values)
    assert len(whole) == BINS


def test_the_middle_of_the_histogram_is_zero():
    counts = histogram(torch.tensor([-1e-6, 1e-6, 1e-6]), 1.0)
    assert counts[BINS // 2 - 1 : BINS // 2 + 1] == [1, 2]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_kept_of_several_columns_is_what_each_keeps_alone(data):
    """Few different values, so that ties are many, and blocks longer and shorter than what is kept."""
    n, c, m = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    numbers = st.lists(st.integers(-9, 9).map(float), min_size=c, max_size=c)
    table = torch.tensor(data.draw(st.lists(numbers, min_size=n, max_size=n)))
    ids = data.draw(st.permutations([f"id{i:02d}" for i in range(n)]))
    kept, scale, start = ScoreSummary(m, [float(j) for j in range(c)]), [float(j) for j in range(c)], 0
    while start < n:
        end = start + data.draw(st.integers(1, n))
        kept.add(table[start:end], ids[start:end], "shard")
        start = end
    for j in range(c):
        alone = top_k(m, [(v, i, "shard") for v, i in zip(table[:, j].tolist(), ids, strict=True)])
        assert kept.ends()[j] == alone, (
            "an entry was lost before it was compared: a bound is too tight, or ties are cut"
        )
        assert kept.histogram[j].tolist() == histogram(table[:, j], scale[j])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize(("n", "k"), [(0, 5), (3, 5), (700, 1000)])
def test_scores_of_stored_rows_are_those_of_the_features(n, k, dtype):
    """Also where they are widened in several pieces, the last of them shorter."""
    rng = torch.Generator().manual_seed(0)
    unit = (20 * torch.randn(n, k, generator=rng)).to(dtype)
    scale, weight, z = torch.rand(n, generator=rng), torch.rand(n, generator=rng), torch.randn(4, k, generator=rng)
    assert n < 700 or WIDE_BYTES // (4 * k) < n < 2 * WIDE_BYTES // (4 * k)
    dense = scores(unit.double() * scale[:, None].double(), weight.double(), z.double())
    found = torch.full((n, 4), torch.nan)
    stored_scores(unit, weight * scale, z, found)
    assert ((found - dense).abs() <= DENSE32 * dense.abs().max() if n else dense == 0).all()
    across, filled = torch.full((QUERY_ROWS, n + 2), torch.nan), torch.cat([z, torch.zeros(QUERY_ROWS - 4, k)])
    transposed_products(unit, weight * scale, filled, across[:, 1:-1])
    assert ((across[:4, 1:-1].T - dense).abs() <= DENSE32 * dense.abs().max() if n else dense == 0).all()
    assert (across[4:, 1:-1] == 0).all()
    assert across[:, [0, -1]].isnan().all(), "scores of other samples were written"


@pytest.mark.skipif(
    not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="known of MKL's products on AVX-512",
)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("k", [64, 1000, 4096])
def test_transposed_products_of_a_query_do_not_depend_on_the_others(k, threads):
    rng = torch.Generator().manual_seed(k)
    n = max(64, WIDE_BYTES // (4 * k)) + 1
    unit, z = torch.randint(-127, 128, (n, k), generator=rng, dtype=torch.int8), torch.randn(96, k, generator=rng)
    before, every = torch.get_num_threads(), torch.empty(96, n)
    torch.set_num_threads(threads)
    try:
        transposed_products(unit, torch.ones(n), z, every)
        for size in (1, 2, 3, 7, 11):
            chosen = torch.randperm(96, generator=rng)[: size * QUERY_ROWS]
            out = torch.empty(len(chosen), n)
            transposed_products(unit, torch.ones(n), z[chosen], out)
            assert torch.equal(out, every[chosen])
    finally:
        torch.set_num_threads(before)


def test_average_precision_by_hand():
    assert average_precision([True, False, True]) == (1 + 2 / 3) / 2
    assert average_precision([False, False]) == 0
    assert precision_at([True, False, True], 2) == 0.5
    assert base_rate([True, False, False, True]) == 0.5
    assert recall_at_carriers([True, False, True, False]) == 0.5


def test_average_precision_of_a_random_order_is_near_the_base_rate():
    rng = np.random.default_rng(0)
    mean = np.mean([average_precision((rng.permutation(300) < 100).tolist()) for _ in range(300)])
    assert abs(mean - 1 / 3) < 0.02
