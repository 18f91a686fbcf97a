"""Closed form, order of convergence, the reference sampler, and who owns the noise."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from concept_trak.attribution.denoiser import guided
from concept_trak.attribution.state import Probe, time_grid
from concept_trak.attribution.trajectory import (
    TRAJECTORIES,
    ddim_inversion,
    ddim_step,
    forward_noise,
    generate,
    sampling,
)
from concept_trak.models.gaussian import Gaussian, Settings
from tests.tolerances import EXACT64
from tests.toys import Toy, batch

INVERSION = Probe("ddim_inversion", "prediction")


def test_the_kept_times_are_the_published_ones():
    assert list(INVERSION.states) == [99, 199, 299, 399, 499, 599, 699, 799, 899]
    assert INVERSION.last == 45
    assert time_grid(51)[:6] == [0, 19, 39, 59, 79, 99]
    assert time_grid(51)[-1] == 999


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_states_stand_where_the_probe_says(name):
    denoiser, probe = Toy(), Probe(name, "prediction", guidance=2.0)
    states = list(TRAJECTORIES[name](denoiser, batch(denoiser), probe, 0))
    assert sorted(s.t for s in states) == list(probe.states)
    assert len(states) == 9


def test_inversion_converges_to_the_flow_at_first_order():
    """x_t = alpha_t mu + (s_t / s_0)(x_0 - alpha_0 mu): halving the step must halve the error."""
    gaussian = Gaussian(Settings(spread=0.5))
    b = batch(gaussian)
    mu = gaussian.network(b.cond["label"]).reshape(b.x_0.shape)
    s_t = (gaussian.alpha**2 * 0.25 + gaussian.sigma**2).sqrt()
    errors = []
    for points in (28, 112, 223, 445):  # 999 / 27, / 111, / 222, / 444
        *_, last = ddim_inversion(gaussian, b, replace(INVERSION, points=points, every=1), 0)
        exact = gaussian.alpha[last.t] * mu + s_t[last.t] / s_t[0] * (b.x_0 - gaussian.alpha[0] * mu)
        errors.append((last.x_t - exact).norm().item())
    ratios = [a / b for a, b in pairwise(errors[1:])]
    assert all(1.8 < r < 2.2 for r in ratios), (
        f"error ratios {ratios}: not first order; the update leaves at the wrong time"
    )


def test_the_noise_of_an_inverted_state_is_what_makes_it_from_x_0():
    denoiser = Toy()
    b = batch(denoiser)
    for state in ddim_inversion(denoiser, b, replace(INVERSION, guidance=7.5), 0):
        again = denoiser.alpha[state.t] * b.x_0 + denoiser.sigma[state.t] * state.noise
        torch.testing.assert_close(state.x_t, again, rtol=EXACT64, atol=1e-12)


def test_guidance_bends_the_path_and_is_the_written_out_mix():
    denoiser = Toy()
    b = batch(denoiser)
    mixed = guided(denoiser, b.x_0, 500, b.cond, b.negative, 7.5)
    e_c, e_n = denoiser(b.x_0, 500, b.cond).eps, denoiser(b.x_0, 500, b.negative).eps
    torch.testing.assert_close(mixed.eps, e_n + 7.5 * (e_c - e_n), rtol=EXACT64, atol=1e-12)
    torch.testing.assert_close(
        mixed.x_0, (b.x_0 - denoiser.sigma[500] * mixed.eps) / denoiser.alpha[500], rtol=EXACT64, atol=1e-10
    )
    straight, bent = (
        [s.x_t for s in ddim_inversion(denoiser, b, replace(INVERSION, guidance=g), 0)] for g in (1.0, 7.5)
    )
    assert not torch.allclose(straight[-1], bent[-1])


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_step_is_the_reference_schedulers_step(eta):
    """diffusers' DDIM scheduler, step for step, with the same noise."""
    denoiser = Toy()
    scheduler = DDIMScheduler(beta_end=0.02, beta_start=1e-4, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    b, t = batch(denoiser), 500
    seen = denoiser(b.x_0, t, b.cond)
    noise = torch.ones_like(b.x_0)
    theirs = scheduler.step(seen.eps, t, b.x_0, eta=eta, variance_noise=noise if eta else None).prev_sample
    ours = ddim_step(denoiser, seen, t, t - 20, eta, noise if eta else None)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # the scheduler's table is float32


def test_eta_is_refused_for_a_process_that_does_not_preserve_variance():
    flow = Toy()
    flow.alpha, flow.sigma = torch.linspace(1, 0.001, 1000).double(), torch.linspace(0.001, 1, 1000).double()
    b = batch(flow)
    with pytest.raises(ValueError, match="set eta=0"):
        ddim_step(flow, flow(b.x_0, 500, b.cond), 500, 480, eta=0.5)


@pytest.mark.parametrize("noise", ["shared", "per_sample"])
def test_noise_belongs_to_samples(noise):
    denoiser, probe = Toy(), Probe("forward_noise", "prediction", noise=noise)
    whole, b = batch(denoiser), batch(denoiser)
    for all_of_them, alone in zip(
        forward_noise(denoiser, whole, probe, 3), forward_noise(denoiser, b.rows(slice(2, 3)), probe, 3), strict=True
    ):
        assert torch.equal(all_of_them.x_t[2:3], alone.x_t), "noise depends on the position in the batch"
        assert torch.equal(all_of_them.noise[0], all_of_them.noise[1]) == (noise == "shared")


def test_sampling_belongs_to_its_seed_and_inverts():
    """Sampling down from where inversion ended returns near x_0, the better the finer the grid."""
    gaussian = Gaussian()
    b = batch(gaussian)
    probe = Probe("sampling", "prediction")
    first, again, other = (generate(gaussian, b, probe, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(first[1:2], generate(gaussian, b.rows(slice(1, 2)), probe, 0))
    spread = torch.stack([generate(gaussian, batch(gaussian, 3), probe, s) for s in range(60)])
    mu = gaussian.network(batch(gaussian, 3).cond["label"]).reshape(spread[0].shape)
    assert (spread.mean(0) - mu).abs().max() < 0.35, "samples do not centre on their class"
    assert abs((spread - mu).std().item() / 0.5 - 1) < 0.1, "samples do not have the class's spread"


def test_stochastic_sampling_is_keyed_by_sample():
    gaussian, probe = Gaussian(), Probe("sampling", "prediction", eta=1.0)
    b = batch(gaussian)
    states = [s.x_t for s in sampling(gaussian, b, probe, 0)]
    alone = [s.x_t for s in sampling(gaussian, b.rows(slice(4, 5)), probe, 0)]
    assert torch.equal(states[-1][4:5], alone[-1])
