"""Noise processes as published models have them: cosine, zero-terminal SNR, trained betas, other numbers of steps."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import ddim_inversion, sampling
from concept_trak.models import load_model
from concept_trak.models.noise_schedule import rectified_flow
from tests.tolerances import EXACT64

COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {"rescale_betas_zero_snr": True}


def with_scheduler(base: Path, out: Path, **settings) -> str:
    model = shutil.copytree(base, out)
    file = model / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(model)


def own_schedule(path: str) -> torch.Tensor:
    return DDIMScheduler.from_pretrained(Path(path) / "scheduler").alphas_cumprod.double()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("settings", [COSINE, {"trained_betas": [1e-4 + 2e-5 * i for i in range(1000)]}], ids=str)
def test_a_schedule_of_any_shape_is_the_schedulers_own(saved, tmp_path, settings, prediction_type):
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type=prediction_type, **settings)
    d, own = load_model(path), own_schedule(path)
    kept = own[list(d.schedule.times)]
    assert torch.equal(d.alpha, kept.sqrt())
    torch.testing.assert_close(d.alpha**2 + d.sigma**2, torch.ones(1000, dtype=torch.float64))
    assert d.schedule.times[0] == 0
    assert (d.alpha.diff() <= 0).all()


SPREAD = 0.3


def optimal(d: Denoiser, times: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
    """The raw output of the best network for x_0 ~ N(0, SPREAD^2): E[eps | x_t], or v made of it."""
    t = d.schedule.times.index(int(times[0]))
    alpha, sigma = d.alpha[t].item(), d.sigma[t].item()
    variance = alpha**2 * SPREAD**2 + sigma**2
    eps, x_0 = sigma * x_t / variance, alpha * SPREAD**2 * x_t / variance
    return eps if d.prediction_type == "epsilon" else alpha * eps - sigma * x_0


@pytest.mark.parametrize("settings", [COSINE, COSINE | {"prediction_type": "v_prediction"},
                                      ZERO_SNR | {"prediction_type": "v_prediction"}], ids=str)  # fmt: skip
def test_paths_over_a_schedule_that_ends_in_pure_noise_are_those_of_the_flow(saved, tmp_path, settings):
    """x_t = (s_t / s_T) x_T with s_t^2 = alpha_t^2 SPREAD^2 + sigma_t^2, in closed form, up to the steps' length."""
    d = load_model(with_scheduler(saved("latents"), tmp_path / "m", **settings), precision="float64")
    d.denoising = d.denoising._replace(predict=lambda network, x_t, times, cond: optimal(d, times, x_t))
    x_0 = SPREAD * torch.stack([normal(d.shape, 0, i, "x") for i in range(2)]).double()
    batch = Batch(("a", "b"), d.encode(["red", "blue"]), d.encode(["", ""]), x_0)
    up = list(ddim_inversion(d, batch, Probe("ddim_inversion", "reconstruction_reward", guidance=1.0), 0))
    down = list(sampling(d, batch, Probe("sampling", "concept_reward"), 0))
    for state in (*up, *down):
        size = state.x_t.square().mean().sqrt().item()  # of 512 numbers, within 3 % of the expected one
        expected = (d.alpha[state.t] ** 2 * SPREAD**2 + d.sigma[state.t] ** 2).sqrt().item()
        assert size == pytest.approx(expected, rel=0.15), f"at t={state.t}"


def test_cosine_epsilon_ends_where_alpha_still_determines_x_0(saved, tmp_path):
    """Its last steps divide by 5e-5; ours end at the same alpha as the linear schedule of Ho et al."""
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type="epsilon", **COSINE)
    d = load_model(path)
    assert 5e-3 < d.alpha[-1] < 1e-2
    assert own_schedule(path)[-1].sqrt() < 1e-4
    assert d.schedule.times[-1] == 995


def test_cosine_v_has_every_step(saved, tmp_path):
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type="v_prediction", **COSINE)
    assert load_model(path).schedule.times == tuple(range(1000))


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"])
def test_zero_terminal_snr_with_epsilon_is_refused_when_loaded(saved, tmp_path, scheduler):
    """Euler's version keeps 2^-24 in place of 0, so that its own sigmas are finite."""
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type="epsilon", **ZERO_SNR)
    index = Path(path) / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", scheduler]}))
    with pytest.raises(UserError, match=r"epsilon' and zero-terminal SNR: .* set prediction_type to v_prediction"):
        load_model(path)


def test_zero_terminal_snr_by_its_betas_alone_is_refused_too(saved, tmp_path):
    betas = [0.01] * 999 + [1.0]
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type="epsilon", trained_betas=betas)
    with pytest.raises(UserError, match="zero-terminal SNR"):
        load_model(path)


def test_zero_terminal_snr_with_v_reconstructs_from_pure_noise(saved, tmp_path):
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type="v_prediction", **ZERO_SNR)
    d = load_model(path, precision="float64")
    assert d.alpha[-1] == 0
    x_t = normal(d.shape, 0, 0, "x")[None].double()
    with torch.no_grad():
        seen = d(x_t, 999, d.encode(["red"]))
        raw = d.network(x_t, 999, encoder_hidden_states=d.encode(["red"])["text"]).sample
    torch.testing.assert_close(seen.x_0, -raw, rtol=EXACT64, atol=EXACT64)
    torch.testing.assert_close(seen.eps, x_t, rtol=EXACT64, atol=EXACT64)


@pytest.mark.parametrize("steps", [100, 4000])
def test_another_number_of_steps_is_spread_over_our_times(saved, tmp_path, steps):
    path = with_scheduler(saved("latents"), tmp_path / "m", num_train_timesteps=steps, prediction_type="v_prediction",
                          beta_start=0.1 / steps, beta_end=20 / steps)  # fmt: skip
    d, own = load_model(path, precision="float64"), own_schedule(path)
    assert (d.schedule.times[0], d.schedule.times[-1]) == (0, steps - 1)
    t, told = 500, round(500 / 999 * (steps - 1))
    assert d.schedule.times[t] == told
    assert d.alpha[t] == own[told].sqrt()
    x_t, cond = normal(d.shape, 0, 0, "x")[None].double(), d.encode(["red"])
    with torch.no_grad():
        raw = d.network(x_t, told, encoder_hidden_states=cond["text"]).sample
        eps = d(x_t, t, cond).eps
    expected = d.sigma[t] * x_t + d.alpha[t] * raw
    assert (eps - expected).norm() < EXACT64 * expected.norm()
    assert d.identity()["schedule"] != load_model(str(saved("latents"))).identity()["schedule"]


def levels_of(tokens: int, **settings) -> torch.Tensor:
    return rectified_flow(FlowMatchEulerDiscreteScheduler(**settings), "scheduler", tokens).sigma


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (2176, 0.825), (4096, 1.15)])
def test_a_dynamic_shift_is_that_of_the_images_size(tokens, mu):
    """Of Esser et al. (2024), section 5.3.2, with e^mu on the line through the two published sizes."""
    u = torch.linspace(1 / 1000, 1, 1000, dtype=torch.float64)
    expected = math.exp(mu) * u / (1 + (math.exp(mu) - 1) * u)
    torch.testing.assert_close(levels_of(tokens, use_dynamic_shifting=True), expected, rtol=2e-6, atol=1e-7)
    linear = levels_of(tokens, use_dynamic_shifting=True, time_shift_type="linear")
    torch.testing.assert_close(linear, mu * u / (1 + (mu - 1) * u), rtol=2e-6, atol=1e-7)


def test_a_samplers_choice_of_levels_changes_none():
    for shift in ({"use_dynamic_shifting": True}, {"shift": 3.0}):
        assert torch.equal(levels_of(256, **shift), levels_of(256, use_karras_sigmas=True, **shift))


def test_a_flow_of_another_solver_has_its_shift():
    """SANA is published with DPM-Solver++, which samples the same process."""
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    sigma = rectified_flow(solver, "scheduler", 256).sigma
    torch.testing.assert_close(sigma, levels_of(256, shift=3.0), rtol=2e-6, atol=1e-7)


def test_a_terminal_shift_stretches_the_levels_to_its_end():
    sigma = levels_of(256, use_dynamic_shifting=True, shift_terminal=0.02)
    plain = levels_of(256, use_dynamic_shifting=True)
    torch.testing.assert_close(1 - sigma, (1 - plain) * 0.98 / (1 - plain[0]), rtol=2e-6, atol=1e-7)
    assert sigma[0].item() == pytest.approx(0.02, rel=1e-5)
    assert (sigma.diff() > 0).all()


@pytest.mark.parametrize(
    ("betas", "expected"),
    [([0.02] * 1000, "alpha is below 0.005 at"), ([-0.01] * 1000, "are no noise process; .*Check the betas"),
     ([float("nan")] * 1000, "are no noise process")],
)  # fmt: skip
def test_betas_that_make_no_noise_process_are_refused(saved, tmp_path, betas, expected):
    path = with_scheduler(saved("latents"), tmp_path / "m", prediction_type="epsilon", trained_betas=betas)
    with pytest.raises(UserError, match=expected):
        load_model(path)
