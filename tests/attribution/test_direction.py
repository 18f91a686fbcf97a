"""J^T v against autograd of every published loss, written out with its stop-gradients, in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.gradients.pull_back import pull_back
from concept_trak.attribution.state import Probe, State
from concept_trak.attribution.trajectory import forward_noise
from tests.tolerances import EXACT64
from tests.toys import Toy, batch

W = 2.5  # not 1, so that a lost `strength` shows


def published_loss(name: str, denoiser: Denoiser, s: State) -> Tensor:
    """The loss of one sample exactly as the table of the design prints it."""
    x_t = s.x_t.detach().requires_grad_()
    seen = denoiser(x_t, s.t, s.batch.cond)
    eps = seen.eps
    if name == "denoising_error":
        return ((s.noise - eps) ** 2).mean()
    if name == "prediction":
        return (eps**2).mean()
    if name == "prediction_sign":
        return eps.abs().mean()
    if name == "reconstruction_reward":
        reward = ((seen.x_0 - s.batch.x_0) ** 2).mean()
        (slope,) = torch.autograd.grad(reward, x_t, create_graph=True)
        return (((eps + slope).detach() - eps) ** 2).mean()
    if name == "caption_fit":
        way = eps.detach() - denoiser(x_t, s.t, s.batch.negative).eps.detach()
        a = (((s.noise - eps.detach() + way) * way).sum() / way.square().sum()).clamp(0, 1)
        return ((eps.detach() + W * a * way - eps) ** 2).mean()
    if name == "example_reward":
        return ((seen.x_0 - s.batch.target) ** 2).mean()
    if name == "classifier_reward":
        return -s.batch.classifier(seen.x_0).sum()
    against = s.batch.without if name == "concept_reward" else s.batch.negative
    other = denoiser(x_t, s.t, against).eps
    return (((eps + W * (eps - other)).detach() - eps) ** 2).mean()


@pytest.mark.parametrize("name", DIRECTIONS)
def test_pulled_back_direction_is_the_gradient_of_the_published_loss(name):
    denoiser, probe = Toy(), Probe("forward_noise", name, times=(300,), strength=W, doubt=1e9)
    (state,) = forward_noise(denoiser, batch(denoiser, 3), probe, seed=1)
    ours = pull_back(denoiser, state, [lambda s, seen: DIRECTIONS[name](denoiser, s, seen, probe)])[0].dense()
    for i in range(3):
        loss = published_loss(name, denoiser, state.rows(slice(i, i + 1)))
        theirs = torch.autograd.grad(loss, list(denoiser.parameters.values()), allow_unused=True)
        for (parameter, p), g in zip(denoiser.parameters.items(), theirs, strict=True):
            g = torch.zeros_like(p) if g is None else g
            error = (ours[parameter][i] - g).norm() / g.norm().clamp_min(1e-300)
            assert error < EXACT64, f"{name}, {parameter}: {error:.1e}; a constant or a sign of v(s) is wrong"


def test_rewards_of_equal_conditions_have_no_direction():
    denoiser = Toy()
    same = replace(batch(denoiser), without=batch(denoiser).cond, negative=batch(denoiser).cond)
    for name in ("concept_reward", "caption_reward"):
        probe = Probe("forward_noise", name, times=(300,))
        (state,) = forward_noise(denoiser, same, probe, seed=1)
        v = pull_back(denoiser, state, [lambda s, seen, p=probe: DIRECTIONS[p.direction](denoiser, s, seen, p)])[
            0
        ].direction.v
        assert (v == 0).all(), f"{name}: rounding noise of equal conditions was taken for a direction"


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [
        ("concept_reward", "without", "without_prompt"),
        ("example_reward", "target", "`examples`"),
        ("classifier_reward", "classifier", "`classifier`"),
    ],
)
def test_a_direction_says_what_it_misses(name, missing, remedy):
    denoiser = Toy()
    probe = Probe("forward_noise", name, times=(300,))
    lonely = replace(batch(denoiser), **{missing: None})
    (state,) = forward_noise(denoiser, lonely, probe, seed=1)
    pointer = partial(lambda s, seen: DIRECTIONS[name](denoiser, s, seen, probe))
    with pytest.raises(ValueError, match=remedy):
        pull_back(denoiser, state, [pointer])[0]
