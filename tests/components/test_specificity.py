"""Specificity: reach against the Jacobian, surgery against its definition, and what each does to the choice."""

import pytest
import torch

from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import State
from concept_trak.components.measure import Measurement, evaluations, measure, states_of
from concept_trak.components.specificity import AGAINST, benefit_and_price, off_span, reference_objective
from tests.components.test_measure import CONCEPT, SHORT, given
from tests.toys import Toy


def test_reach_is_the_square_of_the_jacobian_along_noise(toy):
    """F_i = (z^T d eps/d theta_i)^2 / D for the state's own z ~ N(0, I); its mean over z is |d eps/d theta_i|^2 / D."""
    (state,) = list(states_of(toy, "reach", SHORT, CONCEPT, 0))[:1]
    found = measure(toy, "reach", given([state]), seed=3)
    z = normal(toy.shape, 3, "query-0", "reach", state.t).double()
    for name, p in toy.parameters.items():
        i = int(found.gradient[name].argmax())
        moved = (column(toy, state, p, i) * z).sum().item() ** 2 / z.numel()
        assert found.gradient[name].flatten()[i].item() == pytest.approx(moved, rel=1e-4), name


@torch.no_grad()
def column(toy: Toy, state: State, p: torch.Tensor, i: int, h: float = 1e-6) -> torch.Tensor:
    """d eps / d theta_i."""
    kept, ends = p.view(-1)[i].item(), []
    for sign in (1, -1):
        p.view(-1)[i] = kept + sign * h
        ends.append(toy(state.x_t, state.t, state.batch.cond).eps)
    p.view(-1)[i] = kept
    return (ends[0] - ends[1])[0] / (2 * h)


def test_the_rows_of_reach_are_what_zeroing_them_moves(toy):
    found = measure(toy, "reach", states_of(toy, "reach", SHORT, CONCEPT, 0))
    for name, p in toy.parameters.items():
        price = (p.detach().square() * found.gradient[name]).sum().item()
        assert found.rows[name].mean(0).sum().item() == pytest.approx(price, rel=1e-9)


def test_a_trajectory_that_is_told_what_was_seen_is_the_same(toy):
    """`measure` hands its prediction on; the states are those of a path that makes it again."""
    again = measure(toy, "erase", given(list(states_of(toy, "erase", SHORT, CONCEPT, 0))))
    found = measure(toy, "erase", states_of(toy, "erase", SHORT, CONCEPT, 0))
    for name, g in found.gradient.items():
        torch.testing.assert_close(g, again.gradient[name], rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("objective", ["erase", "contrast", "amplify", "reach"])
def test_a_trajectory_costs_what_is_said_of_it(toy, monkeypatch, objective):
    """A forward is one evaluation, a backward two: what was seen at a state is not made again for the path."""
    asked, call = [], Toy.__call__
    monkeypatch.setattr(Toy, "__call__", lambda *args: asked.append(args) or call(*args))
    found = measure(toy, objective, states_of(toy, objective, SHORT, CONCEPT, 0))
    backward = 4 if objective == "contrast" else 2
    assert len(asked) + backward * len(found.strength) == evaluations(objective, SHORT)


G = {"a": torch.tensor([[3.0, 1], [2, 0]]), "b": torch.tensor([5.0])}
OTHERS = [{"a": torch.tensor([[1.0, 0], [0, 0]]), "b": torch.tensor([1.0])},
          {"a": torch.tensor([[0.0, 2], [0, 0]]), "b": torch.tensor([0.0])},
          {"a": torch.tensor([[1.0, 2], [0, 0]]), "b": torch.tensor([1.0])}]  # fmt: skip


def test_surgery_leaves_nothing_along_a_reference_and_the_rest_as_it_was():
    """The third reference is the sum of the others: a span, not a list."""
    left = off_span(G, OTHERS)
    for other in OTHERS:
        assert sum((left[n] * other[n]).sum().item() for n in G) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(left["a"], torch.tensor([[-1.0, 0], [2, 0]]))
    assert left["b"].item() == pytest.approx(1)
    again = off_span(left, OTHERS)
    assert all(torch.allclose(again[n], left[n], atol=1e-6) for n in G), "a projection twice is the projection"


def of(gradient: dict[str, torch.Tensor]) -> Measurement:
    return Measurement(gradient, {}, torch.ones(1, 2))


def test_each_way_is_what_it_says():
    theta = {"a": torch.tensor([[1.0, -1], [2, 1]]), "b": torch.tensor([-1.0])}
    others = [of(o) for o in OTHERS]
    plain = benefit_and_price("none", theta, G, others)
    assert plain.benefit["a"].tolist() == [[3, -1], [4, 0]]
    assert plain.price is None
    margin = benefit_and_price("margin", theta, G, others).benefit
    assert margin["a"].tolist() == [[3 - 1, -1 - 0], [4, 0]]
    assert margin["b"].tolist() == [-5 - 0]
    by_tensor = benefit_and_price("surgery_by_tensor", theta, G, others).benefit
    assert by_tensor["b"].item() == pytest.approx(0, abs=1e-6), "one number is its reference's own direction"
    reach = benefit_and_price("reach", theta, G, others)
    assert reach.price is not None
    torch.testing.assert_close(reach.price["a"], torch.tensor([[2 / 3, 4 / 3], [0, 0]]))
    for against in AGAINST[1:]:
        with pytest.raises(ValueError, match=f"against={against} compares a concept with others.*references="):
            benefit_and_price(against, theta, G, [])
    assert reference_objective("reach", "amplify") == "reach"
    assert reference_objective("surgery", "amplify") == "amplify"
