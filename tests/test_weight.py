"""What a state counts and a score is multiplied by: the caption's share of what a picture adds."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from concept_trak.denoiser import Prediction
from concept_trak.direction import caption_reward
from concept_trak.features import features
from concept_trak.method import METHODS, Method
from concept_trak.models.gaussian import Gaussian, Settings
from concept_trak.probe import Probe
from concept_trak.projector import Projector
from concept_trak.state import Batch, State
from concept_trak.trajectory import forward_noise
from concept_trak.weight import caption_fit
from tests.tolerances import EXACT64
from tests.toys import Toy, batch

PROBE = Probe("forward_noise", "caption_reward", times=(300, 500, 700), gate="caption_fit")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(d: Tensor, eps: Tensor, noise: Tensor, strength: float = 1.0) -> Tensor:
    """The gate of a state with difference d = eps_c - eps_neg, prediction eps_c and noise eps."""
    b = len(d)
    state = State(Batch(tuple(map(str, range(b))), {}, {}), d, 500, noise)
    v = -2 * strength * d / d[0].numel()
    return caption_fit(replace(PROBE, strength=strength), state, Prediction(d, eps), v)


def test_the_whole_step_is_one_and_the_opposite_nothing():
    """eps - eps_neg = a d has the fit a, clipped to [0, 1]."""
    d, negative = drawn(6, 2, 4, 4), drawn(6, 2, 4, 4, seed=1)
    a = torch.tensor([1.0, 0.5, 0.0, -1.0, 2.0, 0.25], dtype=torch.float64)
    gate = told(d, negative + d, negative + a[:, None, None, None] * d)
    expected = torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(gate, expected, rtol=EXACT64, atol=1e-12)


def test_what_is_across_the_captions_direction_does_not_count():
    d, negative, across = drawn(1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1), drawn(1, 2, 4, 4, seed=2)
    across -= d * (across * d).sum() / d.square().sum()
    assert told(d, negative + d, negative + 0.3 * d + 5 * across).item() == pytest.approx(0.3)


def test_no_direction_counts_nothing():
    d = drawn(2, 2, 4, 4)
    d[1] = 0
    assert told(d, drawn(2, 2, 4, 4, seed=1) + d, drawn(2, 2, 4, 4, seed=2))[1] == 0


def test_it_does_not_depend_on_the_strength_of_the_reward():
    d, eps, noise = (drawn(3, 2, 4, 4, seed=i) for i in range(3))
    torch.testing.assert_close(told(d, eps, noise, 7.5), told(d, eps, noise), rtol=EXACT64, atol=0)


def gaussian() -> tuple[Gaussian, Batch]:
    """Six samples of three classes, each with a negative and another to take in turn."""
    denoiser = Gaussian(Settings(classes=3))
    b = batch(denoiser, 6)
    first, second = (denoiser.encode(labels) for labels in ("101121", "220012"))
    return denoiser, replace(b, negative=first, others=(second,))


def steps(denoiser, b: Batch, state: State) -> tuple[Tensor, Tensor]:
    """By torch.linalg.lstsq, argmin_a |(eps - eps_neg) - a d| of each sample, [b]; and d = eps_c - eps_neg, [b, D]."""
    with torch.no_grad():
        negative = denoiser(state.x_t, state.t, state.batch.negative).eps
        d = (denoiser(state.x_t, state.t, b.cond).eps - negative).flatten(1)
    far = (state.noise - negative).flatten(1)
    return torch.linalg.lstsq(d[:, :, None], far[:, :, None]).solution.flatten(), d


def test_a_whole_row_on_the_gaussian_is_its_written_out_sum():
    """phi = sum_t clip(a_t, 0, 1) u(J^T v_t), with a_t by least squares and J^T v written out.

    The means are the parameters: eps depends on a sample's own mean alone, d eps / d mu = -(alpha / sigma) (1 - c) I
    with c = alpha^2 s^2 / (alpha^2 s^2 + sigma^2), so J^T v is -(alpha / sigma)(1 - c) v in the row of its class.
    """
    denoiser, b = gaussian()
    made = features(denoiser, Projector("identity"), PROBE, b, 0, True)
    phi, gates = torch.zeros(6, 3, 16).double(), []
    for number, state in enumerate(forward_noise(denoiser, b, PROBE, 0)):
        expected = b.negative if number % 2 == 0 else b.others[0]
        assert torch.equal(state.batch.negative["label"], expected["label"]), "states do not take the negatives in turn"
        a, d = steps(denoiser, b, state)
        gates += a.tolist()
        for i, label in enumerate(b.cond["label"].tolist()):
            # -(alpha / sigma)(1 - c) and -2 w / D are both negative, and u drops them.
            if d[i].norm() > 0:
                phi[i, label] += a[i].clamp(0, 1) * d[i] / d[i].norm()
    torch.testing.assert_close(made.phi, phi.flatten(1), rtol=EXACT64, atol=1e-12)
    assert any(0 < a < 1 for a in gates), f"all clipped, nothing is compared: {gates}"


def test_a_sample_does_not_depend_on_its_batch():
    denoiser, b = gaussian()
    whole = features(denoiser, Projector("identity"), PROBE, b, 0, True).phi
    for i in range(len(b.ids)):
        alone = features(denoiser, Projector("identity"), PROBE, b.rows(slice(i, i + 1)), 0, True).phi
        torch.testing.assert_close(alone[0], whole[i], rtol=EXACT64, atol=1e-12)


def test_an_open_gate_changes_nothing():
    denoiser, b = Toy(), batch(Toy())
    without = features(denoiser, Projector("identity"), replace(PROBE, gate="one"), b, 0, True).phi
    gated = features(denoiser, Projector("identity"), PROBE, b, 0, True).phi
    assert not torch.equal(without, gated), "the gate is not used"
    three = replace(METHODS["caption_trak"].train, times=PROBE.times)
    assert torch.equal(without, features(denoiser, Projector("identity"), three, b, 0, True).phi)


def test_on_average_a_picture_of_its_caption_has_the_whole_step():
    """E[eps | x_t, c] = eps_c where x_0 is drawn from its class: the unclipped mean of a is 1, of another class 0."""
    denoiser = Gaussian(Settings(classes=2, spread=0.5))
    n, means = 400, denoiser.network.mean.weight.detach()
    x_0 = (means[0] + 0.5 * drawn(n, 16)).reshape(n, 1, 4, 4)
    probe = replace(PROBE, times=(500,), noise="per_sample")
    found = {}
    for said in (0, 1):
        conds = [denoiser.encode([str(label)] * n) for label in (said, 1 - said)]
        b = Batch(tuple(map(str, range(n))), *conds, x_0)
        (state,) = forward_noise(denoiser, b, probe, 0)
        a, _ = steps(denoiser, b, state)
        found[said] = (a.mean().item(), a.std().item() / n**0.5)
        seen = denoiser(state.x_t.requires_grad_(), state.t, b.cond)
        gate = caption_fit(probe, state, seen, caption_reward(denoiser, state, seen, probe))
        torch.testing.assert_close(gate.detach(), a.clamp(0, 1), rtol=EXACT64, atol=1e-12)
    assert abs(found[0][0] - 1) < 4 * found[0][1], f"right captions: {found[0]}"
    assert abs(found[1][0]) < 4 * found[1][1], f"wrong captions, from which the right one leads away: {found[1]}"


@pytest.mark.parametrize("direction", ["denoising_error", "prediction", "reconstruction_reward"])
def test_it_is_refused_along_any_other_direction(direction):
    with pytest.raises(ValueError, match="choose caption_reward on forward_noise or ddim_inversion, or gate=one"):
        Method(Probe("forward_noise", direction, gate="caption_fit"), Probe("sampling", "concept_reward"))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="weight='two' is not known; expected one of: one, squared_error"):
        replace(METHODS["trak"], weight="two")
    with pytest.raises(ValueError, match="gate='two' is not known; expected one of: one, caption_fit"):
        Method(replace(PROBE, gate="two"), Probe("sampling", "concept_reward"))


def test_it_needs_the_noise():
    state = State(Batch(("a",), {}, {}), drawn(1, 2, 4, 4), 500)
    with pytest.raises(ValueError, match="caption_fit needs noise"):
        caption_fit(PROBE, state, Prediction(drawn(1, 2, 4, 4), drawn(1, 2, 4, 4)), drawn(1, 2, 4, 4))
