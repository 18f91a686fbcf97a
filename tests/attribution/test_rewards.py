"""The rewards of x_0hat, for concepts that no prompt names: finite differences, closed forms, and no words anywhere."""

from dataclasses import replace

import pytest
import torch

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import negatives
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.gradients.pull_back import pull_back
from concept_trak.attribution.method import METHODS, FeatureSpec
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import query_batch, resolve_query
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise
from concept_trak.models.classifier import open_classifier
from concept_trak.models.gaussian import Gaussian, Settings
from tests import written_out
from tests.models.classifiers import saved
from tests.tolerances import EXACT64
from tests.toys import Toy, Unconditional, batch, likes

REWARDS = ("example_reward", "classifier_reward")


def pulled(denoiser, name, b, t=300, seed=1):
    """J^T v with v itself, at x_t of the forward process."""
    probe = Probe("forward_noise", name, times=(t,))
    (state,) = forward_noise(denoiser, b, probe, seed)
    return state, pull_back(denoiser, state, [lambda s, seen: DIRECTIONS[name](denoiser, s, seen, probe)])[0]


@pytest.mark.parametrize("name", REWARDS)
def test_v_is_the_slope_of_the_loss_in_the_noise_that_is_predicted(name):
    """L(eps) with x_0hat = (x_t - sigma eps) / alpha, by central differences in every element of eps."""
    denoiser = Toy()
    b = batch(denoiser, 2)
    state, found = pulled(denoiser, name, b)
    alpha, sigma = denoiser.alpha[300].item(), denoiser.sigma[300].item()

    def loss(eps):
        x_0 = (state.x_t - sigma * eps) / alpha
        return (x_0 - b.target).square().flatten(1).mean(1) if name == "example_reward" else -likes(x_0)

    eps, h = found.prediction.eps, 1e-6
    for i in range(eps[0].numel()):
        step = torch.zeros(eps[0].numel(), dtype=torch.float64).index_fill(0, torch.tensor(i), h).reshape(eps.shape[1:])
        slope = (loss(eps + step) - loss(eps - step)) / (2 * h)
        torch.testing.assert_close(found.direction.v.flatten(1)[:, i], slope, rtol=1e-6, atol=1e-8)


def asked_of(denoiser: Gaussian, labels: list[int], **given) -> Batch:
    x_0 = torch.stack([normal(denoiser.shape, "x_0", i) for i in range(len(labels))]).double()
    cond = denoiser.encode([str(i) for i in labels])
    return Batch(tuple(f"s{i}" for i in labels), cond, cond, x_0, **given)


def share(denoiser: Gaussian, t: int) -> float:
    """dx_0hat / dmu = sigma^2 / (alpha^2 s^2 + sigma^2): how much of what is seen is the class mean."""
    alpha, sigma, s = denoiser.alpha[t].item(), denoiser.sigma[t].item(), denoiser.settings.spread
    return sigma**2 / (alpha**2 * s**2 + sigma**2)


@pytest.mark.parametrize("t", [100, 500, 900])
def test_examples_pull_a_class_mean_to_their_own(t):
    """dL/dmu = 2 (x_0hat - m) / D dx_0hat/dmu for the class that is drawn, exactly 0 for every other."""
    denoiser = Gaussian(Settings(shape=(1, 3, 3)))
    target = normal(denoiser.shape, "target").double()
    _, found = pulled(denoiser, "example_reward", asked_of(denoiser, [0, 2], target=target.expand(2, *target.shape)), t)
    gradient = found.dense()["mean.weight"]
    for i, label in enumerate((0, 2)):
        expected = torch.zeros_like(gradient[i])
        expected[label] = (2 * (found.prediction.x_0[i] - target) / target.numel() * share(denoiser, t)).flatten()
        torch.testing.assert_close(gradient[i], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("t", [100, 500, 900])
def test_a_bayes_classifier_pulls_a_class_mean_to_its_class_from_what_it_takes_it_for(t):
    """Of Gaussians N(mu_j, s^2 I), W_j = mu_j / s^2 and b_j = -|mu_j|^2 / 2 s^2 give the posterior as a `linear` file,
    whose slope is (mu_y - sum_j p_j mu_j) / s^2.
    """
    denoiser = Gaussian(Settings(shape=(1, 3, 3), spread=2.0))
    mu, variance = denoiser.network.mean.weight.detach(), denoiser.settings.spread**2
    weights = {"weight": mu / variance, "bias": -mu.square().sum(1) / 2 / variance}
    judge = open_classifier(saved(weights, "linear", ["zero", "one", "two"]), "bayes", "one", denoiser)
    _, found = pulled(denoiser, "classifier_reward", asked_of(denoiser, [0, 1], classifier=judge), t)
    for i, label in enumerate((0, 1)):
        x_0 = found.prediction.x_0[i].flatten()
        p = torch.stack([-(x_0 - m).square().sum() / 2 / variance for m in mu]).softmax(0)
        slope = (mu[1] - (p[:, None] * mu).sum(0)) / variance
        expected = torch.zeros_like(mu)
        expected[label] = -slope * share(denoiser, t)
        torch.testing.assert_close(found.dense()["mean.weight"][i], expected, rtol=1e-9, atol=1e-14)


def test_examples_are_as_if_one_trained_on_their_mean():
    """v of `example_reward` is that of `denoising_error` times (sigma / alpha)^2 where x_0 is the target."""
    denoiser = Toy()
    b = batch(denoiser, 3)
    b = replace(b, x_0=b.target)
    v = {name: pulled(denoiser, name, b)[1].direction.v for name in ("example_reward", "denoising_error")}
    factor = (denoiser.sigma[300] / denoiser.alpha[300]).item() ** 2
    torch.testing.assert_close(v["example_reward"], factor * v["denoising_error"], rtol=EXACT64, atol=1e-13)


@pytest.mark.parametrize("denoiser", [Toy(), Unconditional()], ids=["by label", "unconditional"])
@pytest.mark.parametrize("name", REWARDS)
def test_a_whole_question_without_words_is_its_written_out_twin(denoiser, name):
    """phi_q and the training side of a row, against the published formulas by autograd; nothing compares conditions."""
    given = {"examples": ("a",)} if name == "example_reward" else {"classifier": "c", "shows": "y"}
    concept = Concept("c", samples=2, seed=3, **given)
    if isinstance(denoiser, Toy) and not isinstance(denoiser, Unconditional):
        denoiser.negative, denoiser.combinations = "other_label", ("0", "1", "2")
    row = replace(METHODS["concept_a"], unit=True)
    row = replace(row, query=replace(row.query, points=7, every=2), train=replace(row.train, times=(300, 700)))
    target = normal(denoiser.shape, "target").double()
    asked = query_batch(denoiser, concept, targets=target[None], classifier=likes)
    method, asked = resolve_query(denoiser, row, concept, asked)
    assert method.query.direction == name
    phi = compute_features(denoiser, Projector("identity"), method.query_spec, asked, concept.seed).phi
    twin = written_out.query_side(denoiser, method, written_out.ones(asked), concept.seed)
    torch.testing.assert_close(phi.mean(0), twin, rtol=EXACT64, atol=1e-14)
    ids = ("a", "b")
    x_0 = torch.stack([normal(denoiser.shape, one).double() for one in ids])
    texts = ["", ""] if isinstance(denoiser, Unconditional) else ["0", "1"]
    trained = Batch(ids, denoiser.encode(texts), negatives(denoiser, ids, texts, 0), x_0)
    ours = compute_features(denoiser, Projector("identity"), FeatureSpec(method.train, method.unit), trained, 0).phi
    theirs, _ = written_out.train_side(denoiser, method, written_out.ones(trained), 0)
    torch.testing.assert_close(ours, theirs, rtol=EXACT64, atol=1e-14)


def test_a_state_the_classifier_is_sure_of_has_no_direction():
    denoiser = Toy()
    sure = replace(batch(denoiser, 2), classifier=lambda x_0: x_0.flatten(1).sum(1) * 0)
    _, found = pulled(denoiser, "classifier_reward", sure)
    assert (found.direction.v == 0).all()
