"""Streamed results against the whole: any split, ties included."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from concept_trak.metrics import average_precision, base_rate, precision_at, recall_at_carriers
from concept_trak.scoring import BINS, TopK, bins

values = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=40)


@given(values, st.integers(1, 8), st.lists(st.integers(0, 40), max_size=5), st.randoms())
def test_topk_equals_a_full_sort_for_every_split(values, m, cuts, random):
    entries = [(v, f"id{i:02d}", "shard") for i, v in enumerate(values)]
    shuffled = random.sample(entries, len(entries))
    edges = [0, *sorted(min(c, len(values)) for c in cuts), len(values)]
    merged = TopK(m)
    for a, b in pairwise(edges):
        part = TopK(m)
        part.add(shuffled[a:b])
        merged = merged + part
    assert merged.top == sorted(entries, key=lambda e: (-e[0], e[1]))[:m], (
        "best entries depend on the split or tie order"
    )
    assert merged.bottom == sorted(entries, key=lambda e: (e[0], e[1]))[:m]


@given(values, st.floats(0.1, 3))
def test_histograms_add_up_and_count_everything(values, scale):
    whole = bins(torch.tensor(values), scale)
    parts = np.sum([bins(torch.tensor([v]), scale) for v in values], 0)
    assert whole == parts.tolist()
    assert sum(whole) == len(values)
    assert len(whole) == BINS


def test_the_middle_of_the_histogram_is_zero():
    counts = bins(torch.tensor([-1e-6, 1e-6, 1e-6]), 1.0)
    assert counts[BINS // 2 - 1 : BINS // 2 + 1] == [1, 2]


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
