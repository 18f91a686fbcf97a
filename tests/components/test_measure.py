"""Component attribution: against finite differences and the concept's own gradient, and what an edit chooses."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.direction import concept_reward
from concept_trak.attribution.gradients.pull_back import pull_back_naive
from concept_trak.attribution.state import Probe, State, required
from concept_trak.attribution.trajectory import States
from concept_trak.components.choice import Choice, choose
from concept_trak.components.groups import group_rows, top_scalar_rows
from concept_trak.components.measure import (
    Measurement,
    alpha,
    expressed,
    mean_measurement,
    measure,
    measurement_from_bytes,
    measurement_to_bytes,
    states_of,
)
from concept_trak.components.specificity import BenefitAndPrice
from concept_trak.components.workers import scaled
from tests.toys import Toy

CONCEPT = Concept("one", labels="1", without_labels="2")
SHORT = Probe("sampling", "concept_reward", points=5, every=1, times=(200, 600))


def states(toy: Toy, objective: str = "erase", seed: int = 0) -> list[State]:
    return list(states_of(toy, objective, SHORT, CONCEPT, seed))


def given(found: list[State]) -> States:
    """As a path gives them, which can be told what was seen."""
    for state in found:  # noqa: UP028 (a list cannot be told)
        yield state


def found_of(toy: Toy, objective: str = "erase", seed: int = 0, unit: bool = False) -> Measurement:
    return measure(toy, objective, given(states(toy, objective, seed)), unit)


def written_out(toy: Toy, objective: str, at: list[State], bases: Sequence[torch.Tensor | None]) -> float:
    """The mean of J over the states, with the targets given."""
    sign = -1 if objective == "amplify" else 1
    pairs = zip(at, bases, strict=True)
    total = [
        sign * (toy(s.x_t, s.t, s.batch.cond).eps - required(base, "noise", objective)).square().mean().item()
        for s, base in pairs
    ]
    return sum(total) / len(total)


@pytest.mark.parametrize("objective", ["erase", "contrast", "amplify"])
@torch.no_grad()
def test_alpha_is_what_finite_differences_say(toy, objective):
    """theta_i dJ/dtheta_i = dJ/dh at theta_i (1 + h), for the largest scalar of every tensor."""
    at = states(toy, objective)

    def targets() -> list[torch.Tensor | None]:
        return [s.noise if objective == "amplify" else toy(s.x_t, s.t, s.batch.without).eps for s in at]

    held = targets()
    alphas = alpha(toy, measure(toy, objective, given(at)))
    for name, p in toy.parameters.items():
        i, h = int(alphas[name].abs().argmax()), 1e-5
        kept, ends = p.flatten()[i].item(), []
        for sign in (1, -1):
            p.view(-1)[i] = kept * (1 + sign * h)
            ends.append(written_out(toy, objective, at, targets() if objective == "contrast" else held))
        p.view(-1)[i] = kept
        slope = (ends[0] - ends[1]) / (2 * h)
        assert alphas[name].flatten()[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-12), name


def test_the_erase_gradient_is_minus_one_over_w_times_the_concept_rewards(toy):
    at, w = states(toy), 2.5
    probe = replace(SHORT, strength=w)
    pulled = [pull_back_naive(toy, s, lambda st, seen: concept_reward(toy, st, seen, probe))[0] for s in at]
    found = measure(toy, "erase", given(at)).gradient
    for name in found:
        reward = torch.stack([each[name][0] for each in pulled]).mean(0)
        torch.testing.assert_close(found[name], -reward / w, rtol=1e-9, atol=1e-15)


def test_groups_add_up(toy):
    """The alpha of a tensor is that of its rows, and that of its scalars; so are the positive and negative parts."""
    found = mean_measurement([found_of(toy, seed=s) for s in (0, 1)])
    alphas = alpha(toy, found)
    rows = list(group_rows(alphas, found, {"mix.weight": 2}))
    for tensor in (row for row in rows if row["granularity"] == "tensor"):
        a, name = alphas[tensor["tensor"]], tensor["tensor"]
        assert tensor["alpha"] == pytest.approx(a.sum().item(), rel=1e-9, abs=1e-15)
        parts = [row for row in rows if row["granularity"] == "row" and row["tensor"] == name]
        assert len(parts) == (len(a) if a.dim() > 1 else 0), "never a row per scalar"
        heads = [row for row in rows if row["granularity"] == "head" and row["tensor"] == name]
        assert len(heads) == (2 if name == "mix.weight" else 0)
        for some in filter(None, (parts, heads)):
            for key in ("alpha", "alpha_positive", "alpha_negative", "parameters"):
                assert sum(part[key] for part in some) == pytest.approx(tensor[key], rel=1e-9, abs=1e-15)


def test_errors_are_those_of_the_means_over_seeds_and_states(toy):
    each = [found_of(toy, seed=s) for s in (0, 1, 2)]
    name, whole = "first.weight", mean_measurement(each)
    of_seed = torch.stack([(toy.parameters[name] * m.gradient[name]).sum() for m in each]).detach()
    (row,) = [r for r in group_rows({name: alpha(toy, whole)[name]}, whole, {}) if r["granularity"] == "tensor"]
    assert row["se_seeds"] == pytest.approx((of_seed.std() / 3**0.5).item())
    assert row["z"] == pytest.approx((of_seed.mean() / (of_seed.std() / 3**0.5)).item())
    states = torch.cat([m.rows[name].sum(1) for m in each])
    assert row["z_states"] == pytest.approx((states.mean() / (states.std() / len(states) ** 0.5)).item())
    assert (row["seeds"], row["states"]) == (3, sum(len(m.strength) for m in each))
    alone = next(iter(group_rows(alpha(toy, each[0]), each[0], {})))
    assert (alone["se_seeds"], alone["z"]) == (None, None), "one seed says nothing about seeds"


def test_normalised_states_have_gradients_of_length_one(toy):
    one = measure(toy, "erase", given(states(toy)[:1]), unit=True)
    assert sum(g.square().sum().item() for g in one.gradient.values()) == pytest.approx(1)
    first, both = (
        next(iter(toy.parameters)),
        [measure(toy, "reach", given(states(toy)[:1]), unit=u) for u in (True, False)],
    )
    assert torch.equal(both[0].gradient[first], both[1].gradient[first]), "a price has a scale, and keeps it"


def test_the_top_is_that_of_all_parameters_sorted(toy):
    found = found_of(toy)
    alphas = alpha(toy, found)
    rows = list(top_scalar_rows(toy.parameters, alphas, found, 5))
    flat = torch.cat([a.flatten() for a in alphas.values()]).sort().values
    assert [r["alpha"] for r in rows if r["end"] == "positive"] == pytest.approx(flat.flip(0)[:5].tolist())
    assert [r["alpha"] for r in rows if r["end"] == "negative"] == pytest.approx(flat[:5].tolist())
    for r in rows:
        assert r["theta"] * r["gradient"] == pytest.approx(r["alpha"])
        assert alphas[r["tensor"]].flatten(1)[r["row"], r["column"]].item() == r["alpha"]


def test_a_measurement_comes_back_as_it_was(toy):
    found = found_of(toy)
    again = measurement_from_bytes(measurement_to_bytes(found), "here")
    assert all(torch.equal(again.gradient[n], g) and torch.equal(again.rows[n], found.rows[n]) for n, g in
               found.gradient.items())  # fmt: skip
    assert expressed(again) == expressed(found) > 0
    with pytest.raises(ValueError, match=r"here is not as it was written .* delete it"):
        measurement_from_bytes(measurement_to_bytes(found)[:50], "here")


def test_what_is_asked_wrongly_is_refused(toy):
    with pytest.raises(ValueError, match="expected one of: erase, contrast, amplify"):
        states_of(toy, "earse", SHORT, CONCEPT, 0)
    with pytest.raises(ValueError, match="leave out scope=local"):
        states_of(toy, "erase", SHORT, replace(CONCEPT, scope="local", image="a.png"), 0)


SCORES = {
    "ff.weight": torch.tensor([[3.0, 1, 2, -1], [-4, -3, -2, -1]]),
    "ff.bias": torch.tensor([9.0, 8]),
    "attn.weight": torch.tensor([[5.0, 6]]),
}


def chosen(choice: Choice) -> Iterator[tuple[str, list[int]]]:
    for name, mask in choose(BenefitAndPrice(SCORES), choice, {"attn.weight": 1}).items():
        yield name, mask.flatten().nonzero().flatten().tolist()


def test_per_row_takes_the_whole_part_of_each_row_then_only_what_is_positive():
    assert dict(chosen(Choice("per_row", 0.5, "ff"))) == {"ff.weight": [0, 2]}, "a row without positive ones loses none"
    assert dict(chosen(Choice("per_row", 0.49, "ff"))) == {"ff.weight": [0]}
    with pytest.raises(ValueError, match=r"ratio=0.2 chooses no parameter \(rows of 4 to 4.*rounded down.*raise it"):
        choose(BenefitAndPrice(SCORES), Choice("per_row", 0.2, "ff"), {})


def test_global_takes_the_first_of_all_candidates():
    assert dict(chosen(Choice("global", 3 / 12))) == {"ff.bias": [0, 1], "attn.weight": [1]}
    assert dict(chosen(Choice("global", 1.0, "ff.weight"))) == {"ff.weight": [0, 1, 2]}
    with pytest.raises(ValueError, match=r"matches none of the parameters; expected a part of names such as: ff"):
        choose(BenefitAndPrice(SCORES), Choice(pattern="conv"), {})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"by": "per_row", "granularity": "row"}, "chooses single parameters"),
        ({"against": "all"}, "none, margin, surg"),
        ({"floor": 0.0}, "floor above 0"),
        ({"towards": "mor"}, "one of: , less, more"),
        ({"granularity": "heads"}, "scalar, row, head, tensor"),
        ({"by": "row"}, "one of: global, per_tensor, per_row"),
        ({"ratio": 0.0}, "above 0"),
        ({"pattern": "("}, "not a regular expression"),
    ],
)
def test_a_wrong_choice_is_refused(wrong, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Choice(**wrong)


def test_an_edit_multiplies_the_chosen_and_nothing_else():
    masks = choose(BenefitAndPrice(SCORES), Choice("global", 3 / 12), {})
    after = scaled(SCORES, masks, 0.5)
    assert after["ff.bias"].tolist() == [4.5, 4]
    assert after["attn.weight"].tolist() == [[5, 3]]
    assert after["ff.weight"] is SCORES["ff.weight"]


def test_groups_are_chosen_by_their_sums():
    row = dict(chosen(Choice("global", 2 / 5, granularity="row")))
    assert row == {"ff.bias": [0], "attn.weight": [0, 1]}, "rows: 5, -10; 9 and 8 alone; 11"
    tensor = dict(chosen(Choice("global", 1 / 3, granularity="tensor")))
    assert tensor == {"ff.bias": [0, 1]}, "-5, 17, 11"
    assert dict(chosen(Choice("global", 1.0, granularity="head"))) == {"attn.weight": [0, 1]}
    with pytest.raises(ValueError, match="matches none of the heads"):
        choose(BenefitAndPrice(SCORES), Choice(granularity="head"), {})
    each = dict(chosen(Choice("per_tensor", 0.5)))
    assert each == {"ff.weight": [0, 1, 2], "ff.bias": [0], "attn.weight": [1]}, "three of four are positive"


def test_a_price_is_weighed_against_the_benefit():
    """Half the benefit at a hundredth of the price goes first; what is free is held to the floor."""
    benefit = {"a": torch.tensor([4.0, 2, 1e-6])}
    price = {"a": torch.tensor([10.0, 0.1, 0])}
    first = choose(BenefitAndPrice(benefit, price), Choice("global", 1 / 3), {})
    assert first["a"].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="all are free"):
        choose(BenefitAndPrice(benefit, {"a": torch.zeros(3)}), Choice(), {})
