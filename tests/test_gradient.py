"""The layer rules against one plain backward per sample."""

import pytest
import torch

from concept_trak.direction import DIRECTIONS
from concept_trak.gradient import norm, pull_back, pull_back_naive
from concept_trak.probe import Probe
from concept_trak.trajectory import forward_noise
from tests.tolerances import EXACT64
from tests.toys import Toy, batch


def pulled(denoiser, how, b, rows=slice(None), direction="reconstruction_reward"):
    probe = Probe("forward_noise", direction, times=(400,))
    (state,) = forward_noise(denoiser, batch(denoiser, b).rows(rows), probe, seed=0)
    return how(denoiser, state, lambda s, seen: DIRECTIONS[direction](denoiser, s, seen, probe))


@pytest.mark.parametrize("direction", ["reconstruction_reward", "denoising_error", "caption_reward"])
@pytest.mark.parametrize("parameters", ["all", r"norm|gain|shift", "wide", "label"])
def test_batched_equals_one_at_a_time(parameters, direction):
    denoiser = Toy(parameters)
    fast, seen, v = pulled(denoiser, pull_back, 4, direction=direction)
    slow, seen_slow, v_slow = pulled(denoiser, pull_back_naive, 4, direction=direction)
    assert list(fast) == list(slow) == list(denoiser.parameters)
    torch.testing.assert_close(v, v_slow, rtol=EXACT64, atol=1e-15)
    torch.testing.assert_close(seen.eps, seen_slow.eps, rtol=EXACT64, atol=1e-13)
    for name in fast:
        error = (fast[name] - slow[name]).norm() / slow[name].norm().clamp_min(1e-300)
        assert error < EXACT64, f"the layer rule that covers {name} is wrong by {error:.1e}"


def test_a_gradient_does_not_depend_on_its_batch_mates():
    denoiser = Toy()
    together, _, _ = pulled(denoiser, pull_back, 5)
    alone, _, _ = pulled(denoiser, pull_back, 5, rows=slice(3, 4))
    for name in together:
        torch.testing.assert_close(together[name][3:4], alone[name], rtol=EXACT64, atol=1e-14)


def test_parameters_without_a_rule_are_exact_and_said_once(caplog):
    denoiser = Toy("last|shift")
    pulled(denoiser, pull_back, 2)
    said = [r for r in caplog.records if "no layer rule" in r.message]
    pulled(denoiser, pull_back, 2)
    assert len([r for r in caplog.records if "no layer rule" in r.message]) == len(said) <= 1


def test_norm_runs_over_all_parameters_of_one_sample():
    denoiser = Toy()
    gradients, _, _ = pulled(denoiser, pull_back, 3)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
    torch.testing.assert_close(norm(gradients), flat.norm(dim=1), rtol=EXACT64, atol=0)


def test_parameters_outside_the_pattern_stay_frozen():
    denoiser = Toy("wide")
    assert [n for n, p in denoiser.network.named_parameters() if p.requires_grad] == ["wide.weight", "wide.bias"]
    with pytest.raises(ValueError, match="matches none of the"):
        Toy("no such layer")
    with pytest.raises(ValueError, match="not a regular expression"):
        Toy("(")
