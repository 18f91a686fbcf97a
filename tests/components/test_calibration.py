"""Calibration: J of ablations against a second writing of it, and the limit in which first order is exact."""

import math
from dataclasses import replace

import pytest
import torch

from concept_trak.components.calibration import CalibrationWorker, ablation_masks, pearson, state_batches
from concept_trak.components.measure import alpha, measure
from tests.components.test_measure import given, states, written_out


def of(toy) -> CalibrationWorker:
    """Without the store: the worker's own arithmetic."""
    made = object.__new__(CalibrationWorker)
    made.denoiser = toy
    return made


def seeds(toy, *some: int) -> list:
    return [state for seed in some for state in states(toy, seed=seed)]


def test_j_is_the_mean_over_the_states_with_the_reference_held_or_not(toy):
    """Two trajectories, whose states of one time share an evaluation: against states one by one."""
    at, worker = seeds(toy, 0, 1), of(toy)
    standing = state_batches(at)
    assert 2 * len(standing) == len(at), "states of one time do not go together"
    before, same, held = worker.objective(standing)
    assert before == same == pytest.approx(written_out(toy, "erase", at, bases(toy, at)), rel=1e-12)
    masks, whole = ablation_masks(toy.parameters, 0.2, 0), bases(toy, at)
    with worker.ablated(masks, 0.0):
        frozen, recomputed, _ = worker.objective(standing, held)
        assert frozen == pytest.approx(written_out(toy, "erase", at, whole), rel=1e-12)
        assert recomputed == pytest.approx(written_out(toy, "erase", at, bases(toy, at)), rel=1e-12)
    assert frozen != pytest.approx(recomputed, rel=1e-3), "an ablation that does not move the reference tells nothing"
    assert worker.objective(standing, held)[0] == before, "the parameters were not restored"


def test_states_of_a_model_of_clips_go_together(toy):
    x_t = torch.randn(2, 3, 2, 4, 4)
    (batch,) = state_batches([replace(state, x_t=x_t) for state in states(toy)[:1]])
    assert torch.equal(batch.x_t, torch.cat([x_t, x_t]))


@torch.no_grad()
def bases(toy, at) -> list[torch.Tensor]:
    return [toy(s.x_t, s.t, s.batch.without).eps for s in at]


@pytest.mark.parametrize(("objective", "which"), [("erase", 0), ("contrast", 1)])
def test_first_order_is_exact_for_ablations_that_vanish(toy, objective, which):
    """Scaled by 1 - h instead of zeroed, dJ = -h sum alpha + O(h^2); the reference held for erase, not for contrast."""
    at, worker, h = states(toy), of(toy), 1e-7
    before, _, held = worker.objective(state_batches(at))
    alphas = alpha(toy, measure(toy, objective, given(at)))
    for number in range(3):
        masks = ablation_masks(toy.parameters, 0.3, number)
        with worker.ablated(masks, 1 - h):
            actual = (worker.objective(state_batches(at), held)[which] - before) / h
        predicted = -sum(alphas[n][mask].sum().item() for n, mask in masks.items())
        assert actual == pytest.approx(predicted, rel=1e-3), number


def test_ablations_are_named_by_number_and_parameter_alone(toy):
    one, again = ablation_masks(toy.parameters, 0.3, 4), ablation_masks(dict(reversed(toy.parameters.items())), 0.3, 4)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert any(not torch.equal(one[n], other) for n, other in ablation_masks(toy.parameters, 0.3, 5).items())


def test_pearson():
    assert pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1)
    assert pearson([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.8)
    assert math.isnan(pearson([1.0, 1.0], [1.0, 2.0]))
