"""The oracle itself, against numerical integration and the derivative of its own density."""

import pytest
import torch

from concept_trak.models.gaussian import Gaussian, Settings
from tests.tolerances import EXACT64

TIMES = [1, 250, 700, 999]


def at(gaussian, t, b=4):
    generator = torch.Generator().manual_seed(t)
    x_t = torch.randn(b, *gaussian.shape, generator=generator, dtype=torch.float64)
    labels = [str(i % 3) for i in range(b)]
    mu = gaussian.network(gaussian.encode(labels)["label"]).reshape(x_t.shape).detach()
    return x_t, gaussian.encode(labels), mu


@pytest.mark.parametrize("t", TIMES)
def test_x_0_is_the_posterior_mean(t):
    """E[x_0 | x_t] by quadrature over x_0, coordinate by coordinate: p(x_0 | c) p(x_t | x_0), normalised."""
    gaussian = Gaussian(Settings(spread=0.5))
    x_t, cond, mu = at(gaussian, t)
    alpha, sigma = gaussian.alpha[t], gaussian.sigma[t]
    x_0 = torch.linspace(-8, 8, 40_001, dtype=torch.float64)[:, None]
    points = x_t.flatten()[None]
    log_p = -((x_0 - mu.flatten()) ** 2) / (2 * 0.5**2) - (points - alpha * x_0) ** 2 / (2 * sigma**2)
    weight = log_p.softmax(0)
    expected = (weight * x_0).sum(0).reshape(x_t.shape)
    torch.testing.assert_close(gaussian(x_t, t, cond).x_0.detach(), expected, rtol=EXACT64, atol=EXACT64)


@pytest.mark.parametrize("t", TIMES)
def test_eps_is_the_score_of_the_noised_density(t):
    """Tweedie: eps = -sigma grad log p(x_t | c), with x_t | c ~ N(alpha mu, (alpha^2 s^2 + sigma^2) I)."""
    gaussian = Gaussian(Settings(spread=0.7))
    x_t, cond, mu = at(gaussian, t)
    alpha, sigma = gaussian.alpha[t].item(), gaussian.sigma[t].item()
    x_t.requires_grad_()
    density = torch.distributions.Normal(alpha * mu, (alpha**2 * 0.7**2 + sigma**2) ** 0.5)
    (score,) = torch.autograd.grad(density.log_prob(x_t).sum(), x_t)
    seen = gaussian(x_t, t, cond)
    torch.testing.assert_close(seen.eps, -sigma * score, rtol=EXACT64, atol=EXACT64)
    torch.testing.assert_close(alpha * seen.x_0 + sigma * seen.eps, x_t, rtol=EXACT64, atol=EXACT64)


def test_a_class_owns_its_mean_and_no_other():
    gaussian = Gaussian()
    x_t, cond, _ = at(gaussian, 500, b=1)
    (slope,) = torch.autograd.grad(gaussian(x_t, 500, cond).eps.sum(), list(gaussian.parameters.values()))
    assert (slope[0] != 0).all()
    assert (slope[1:] == 0).all(), "another class's mean moved the prediction: influence across classes is not 0"


def test_the_means_belong_to_their_seed():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, again, other = (Gaussian(Settings(seed=s)).network.mean.weight for s in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    means = Gaussian(Settings(classes=400)).network.mean.weight
    assert abs(means.std().item() - 1) < 0.05, "means are not drawn from N(0, I)"
    Gaussian(Settings(seed=5))
    assert means.shape == (400, 16)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's own random numbers were used up"


def test_the_noise_process_preserves_variance_and_other_settings_are_another_model():
    gaussian = Gaussian()
    torch.testing.assert_close(gaussian.alpha**2 + gaussian.sigma**2, torch.ones(1000).double(), rtol=EXACT64, atol=0)
    assert (gaussian.alpha.diff() < 0).all()
    assert gaussian.identity() == Gaussian().identity()
    for settings in (Settings(spread=0.6), Settings(seed=1), Settings(classes=4), Settings(shape=(1, 2, 2))):
        assert Gaussian(settings).identity() != gaussian.identity()


def test_images_keep_their_first_channel():
    gaussian = Gaussian()
    pixels = torch.rand(2, 3, 4, 4).double()
    assert torch.equal(gaussian.to_latent(pixels), pixels[:, :1])
    assert torch.equal(gaussian.to_pixels(pixels[:, :1]), pixels[:, :1].expand(-1, 3, -1, -1))
    assert (gaussian.resolution, gaussian.negative, gaussian.combinations) == (4, "other_label", ("0", "1", "2"))
