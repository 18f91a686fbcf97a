"""Calibration: J of ablations against a second writing of it, and the limit in which first order is exact."""

import math

import pytest
import torch

from concept_trak.calibration import Calibrate, drawn_masks, pearson
from concept_trak.components import alpha, measure
from tests.test_components import given, states, written_out
from tests.test_components import toy as toy


def of(toy) -> Calibrate:
    """Without the store: the worker's own arithmetic."""
    made = object.__new__(Calibrate)
    made.denoiser = toy
    return made


def test_j_is_the_mean_over_the_states_with_the_reference_held_or_not(toy):
    at, worker = states(toy), of(toy)
    held = worker._bases(at)
    assert worker._objective(at, held) == pytest.approx(written_out(toy, "erase", at, held), rel=1e-12)
    masks = drawn_masks(toy.parameters, 0.2, 0)
    with worker.ablated(masks, 0.0):
        frozen, again = worker._objective(at, held), worker._objective(at, worker._bases(at))
        assert frozen == pytest.approx(written_out(toy, "erase", at, held), rel=1e-12)
    assert frozen != pytest.approx(again, rel=1e-3), "an ablation that does not move the reference tells nothing"
    assert worker._objective(at, held) == pytest.approx(written_out(toy, "erase", at, held), rel=1e-12), "restored"


def test_first_order_is_exact_for_ablations_that_vanish(toy):
    """Scaled by 1 - h instead of zeroed, dJ = -h sum alpha + O(h^2) with the reference held."""
    at, worker, h = states(toy), of(toy), 1e-5
    held = worker._bases(at)
    alphas, before = alpha(toy, measure(toy, "erase", given(at))), worker._objective(at, held)
    for number in range(3):
        masks = drawn_masks(toy.parameters, 0.3, number)
        with worker.ablated(masks, 1 - h):
            actual = (worker._objective(at, held) - before) / h
        predicted = -sum(alphas[n][mask].sum().item() for n, mask in masks.items())
        assert actual == pytest.approx(predicted, rel=1e-3), number


def test_ablations_are_named_by_number_and_parameter_alone(toy):
    one, again = drawn_masks(toy.parameters, 0.3, 4), drawn_masks(dict(reversed(toy.parameters.items())), 0.3, 4)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert any(not torch.equal(one[n], other) for n, other in drawn_masks(toy.parameters, 0.3, 5).items())


def test_pearson():
    assert pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1)
    assert pearson([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.8)
    assert math.isnan(pearson([1.0, 1.0], [1.0, 2.0]))
