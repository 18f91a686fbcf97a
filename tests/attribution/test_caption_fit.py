"""The direction `caption_fit`: a picture counts only as far as it shows what its caption says, word by word."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from concept_trak.attribution.denoiser import Prediction, negative_count
from concept_trak.attribution.direction import DIRECTIONS, caption_fit
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.method import METHODS, FeatureSpec, Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch, Direction, Probe, State
from concept_trak.attribution.trajectory import forward_noise
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.evaluation.training.loop import unit_range
from concept_trak.models import load_model, small
from concept_trak.models.gaussian import Gaussian, Settings
from tests.tolerances import EXACT64
from tests.toys import Toy, batch

# Every fit is believed here, but where doubt is what is tested.
PROBE = Probe("forward_noise", "caption_fit", times=(300, 500, 700), doubt=1e9)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Told(Toy):
    """Predicts what it is told, condition by condition."""

    def __call__(self, x_t: Tensor, t: int, cond: dict[str, Tensor]) -> Prediction:
        return Prediction(cond["eps"], cond["eps"])


def told(eps: Tensor, noise: Tensor, *negatives: Tensor, strength: float = 1.0, doubt: float = 1e9) -> Direction:
    """The direction of a state with prediction eps under its caption and `negatives` under the others."""
    first, *others = [{"eps": negative} for negative in negatives]
    ids = tuple(map(str, range(len(eps))))
    state = State(Batch(ids, {"eps": eps}, first, others=tuple(others)), eps, 500, noise)
    return caption_fit(Told(), state, Prediction(eps, eps), replace(PROBE, strength=strength, doubt=doubt))


def test_the_whole_step_is_one_and_the_opposite_nothing():
    """eps - eps_neg = a d has the fit a, clipped to [0, 1], and v = -2 w a d / D."""
    d, negative = drawn(6, 2, 4, 4), drawn(6, 2, 4, 4, seed=1)
    a = torch.tensor([1.0, 0.5, 0.0, -1.0, 2.0, 0.25], dtype=torch.float64)
    found = told(negative + d, negative + a[:, None, None, None] * d, negative, strength=3.0)
    expected = torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(found.fit, expected, rtol=EXACT64, atol=1e-12)
    share = torch.where(expected > 0, expected, 1.0)  # where nothing fits, it points and counts 0
    torch.testing.assert_close(found.v, -6 / 32 * share[:, None, None, None] * d, rtol=EXACT64, atol=1e-12)


def test_what_is_across_the_captions_direction_does_not_count():
    d, negative, across = drawn(1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1), drawn(1, 2, 4, 4, seed=2)
    across -= d * (across * d).sum() / d.square().sum()
    assert told(negative + d, negative + 0.3 * d + 5 * across, negative).fit.item() == pytest.approx(0.3)


def test_of_two_negatives_only_the_one_that_the_picture_is_not_points():
    """A picture that is where the second negative is: nothing points away from that, and all away from the first."""
    eps, one, other = (drawn(1, 2, 4, 4, seed=i) for i in range(3))
    found = told(eps, other, one, other)
    d, e = eps - one, eps - other
    a = (((other - one) * d).sum() / d.square().sum()).clamp(0, 1)
    torch.testing.assert_close(found.v, -2 / 32 * a * d / 2, rtol=EXACT64, atol=1e-12)
    assert found.fit.item() == pytest.approx((a * d.norm() / (d.norm() + e.norm())).item())


def test_no_direction_counts_nothing():
    eps = drawn(2, 2, 4, 4)
    negative = eps.clone()
    negative[0] += 1
    found = told(eps, drawn(2, 2, 4, 4, seed=2), negative)
    assert found.fit[1] == 0
    assert (found.v[1] == 0).all()


def test_a_fit_that_is_known_too_badly_counts_nothing():
    """The standard error of least squares: of a in eps - eps_neg = a d + rest, |rest| / sqrt(D) / |d|."""
    d, negative, rest = drawn(1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1), drawn(1, 2, 4, 4, seed=2)
    rest -= d * (rest * d).sum() / d.square().sum()
    error = (rest.norm() / 32**0.5 / d.norm()).item()
    seen = negative + d
    assert told(seen, seen + rest, negative, doubt=1.01 * error).fit.item() == pytest.approx(1)
    assert told(seen, seen + rest, negative, doubt=0.99 * error).fit.item() == 0
    assert (told(seen, seen + rest, negative, doubt=0.99 * error).v != 0).any(), "who is doubted is no reject"


def test_the_standard_error_is_the_spread_of_the_fit_over_noise():
    """Noise around eps_c of s in each number moves the fit a by s / |d|: 2,000 draws, to four standard errors."""
    n, s = 2000, 0.3
    d, negative = drawn(1, 2, 4, 4), drawn(1, 2, 4, 4, seed=1)
    noise = negative + d + s * drawn(n, 2, 4, 4, seed=2)
    a = ((noise - negative) * d).flatten(1).sum(1) / d.square().sum()
    assert abs(a.std() / (s / d.norm()) - 1) < 4 / (2 * n) ** 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_initial_weights_tell_no_picture_from_another(tmp_path, seed):
    """The control that every row of the table must fall to chance in: at the benchmark's own size, random weights see
    captions apart and pictures not, so all that `fit_trak` could rank by is words, and it ranks by nothing."""
    small.patch_pipeline(seed).save_pretrained(tmp_path)
    model, said = (
        load_model(str(tmp_path), parameters=r"^proj_out\."),
        ["a red circle", "a blue circle", "a red square"],
    )
    images, _ = arrays(seed, 0, 3)
    others = [model.encode([*said[i:], *said[:i]]) for i in (1, 2)]
    b = Batch(tuple("abc"), model.encode(said), others[0], unit_range(torch.from_numpy(images)), others=(others[1],))
    row, p = METHODS["fit_trak"], Projector("identity")
    assert (compute_features(model, p, FeatureSpec(row.train, row.unit), b, 0).phi == 0).all(), (
        "untrained, and yet it has something to say"
    )
    believed = compute_features(model, p, FeatureSpec(replace(row.train, doubt=1e9), row.unit), b, 0).phi
    assert (believed != 0).any(), "without doubt it would have said something: nothing was tried"


def test_doubt_is_a_positive_number():
    with pytest.raises(ValueError, match=r"doubt=0\.0: expected a positive standard error; 1000 uses every fit"):
        replace(PROBE, doubt=0.0)


def gaussian() -> tuple[Gaussian, Batch]:
    """Six samples of three classes, each against both of the others."""
    denoiser = Gaussian(Settings(classes=3))
    b = batch(denoiser, 6)
    first, second = (denoiser.encode(labels) for labels in ("101121", "220012"))
    return denoiser, replace(b, negative=first, others=(second,))


def steps(denoiser, b: Batch, state: State, negative: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """By torch.linalg.lstsq, argmin_a |(eps - eps_neg) - a d| of each sample, [b]; and d = eps_c - eps_neg, [b, D]."""
    with torch.no_grad():
        other = denoiser(state.x_t, state.t, negative).eps
        d = (denoiser(state.x_t, state.t, b.cond).eps - other).flatten(1)
    far = (state.noise - other).flatten(1)
    return torch.linalg.lstsq(d[:, :, None], far[:, :, None]).solution.flatten(), d


def test_a_whole_row_on_the_gaussian_is_its_written_out_sum():
    """phi = sum_t fit_t u(J^T v_t), with a_tj by least squares and J^T v written out.

    The means are the parameters: eps depends on a sample's own mean alone, d eps / d mu = -(alpha / sigma) (1 - c) I
    with c = alpha^2 s^2 / (alpha^2 s^2 + sigma^2), so J^T v is -(alpha / sigma)(1 - c) v in the row of its class.
    """
    denoiser, b = gaussian()
    made = compute_features(denoiser, Projector("identity"), FeatureSpec(PROBE, True), b, 0)
    phi, shares = torch.zeros(6, 3, 16).double(), []
    for state in forward_noise(denoiser, b, PROBE, 0):
        pairs = [steps(denoiser, b, state, negative) for negative in (b.negative, *b.others)]
        for i, label in enumerate(b.cond["label"].tolist()):
            a = [pair[0][i].clamp(0, 1).nan_to_num() for pair in pairs]
            d = [pair[1][i] for pair in pairs]
            fit = sum(x * y.norm() for x, y in zip(a, d, strict=True)) / sum(y.norm() for y in d)
            v = sum(x * y for x, y in zip(a, d, strict=True))
            shares += [x.item() for x in a]
            # -(alpha / sigma)(1 - c) and -2 w / D are both negative, and u drops them.
            if v.norm() > 0:
                phi[i, label] += fit * v / v.norm()
    torch.testing.assert_close(made.phi, phi.flatten(1), rtol=EXACT64, atol=1e-12)
    assert any(0 < a < 1 for a in shares), f"all clipped, nothing is compared: {shares}"


def test_a_picture_that_fits_nothing_has_a_feature_of_zero_and_no_sample_is_lost():
    """A reject is a sample without a direction; this one has a direction, and does not follow it."""
    denoiser, b = gaussian()
    made = compute_features(denoiser, Projector("identity"), FeatureSpec(PROBE, True), replace(b, x_0=-5 * b.x_0), 0)
    assert (made.phi == 0).all(1).any(), "every picture fits a little: nothing is tried"
    assert (made.states == 3).all()


def test_a_sample_does_not_depend_on_its_batch():
    denoiser, b = gaussian()
    whole = compute_features(denoiser, Projector("identity"), FeatureSpec(PROBE, True), b, 0).phi
    for i in range(len(b.ids)):
        alone = compute_features(
            denoiser, Projector("identity"), FeatureSpec(PROBE, True), b.rows(slice(i, i + 1)), 0
        ).phi
        torch.testing.assert_close(alone[0], whole[i], rtol=EXACT64, atol=1e-12)


def test_a_picture_that_fits_wholly_has_its_captions_reward(monkeypatch):
    """With a = 1 everywhere `caption_fit` is `caption_reward`."""
    denoiser, b = Toy(), batch(Toy())
    plain = compute_features(
        denoiser, Projector("identity"), FeatureSpec(replace(PROBE, direction="caption_reward"), True), b, 0
    ).phi
    assert not torch.equal(plain, compute_features(denoiser, Projector("identity"), FeatureSpec(PROBE, True), b, 0).phi)
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, low, high: torch.ones_like(x))
    torch.testing.assert_close(
        compute_features(denoiser, Projector("identity"), FeatureSpec(PROBE, True), b, 0).phi,
        plain,
        rtol=EXACT64,
        atol=1e-12,
    )


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
        a, _ = steps(denoiser, b, state, b.negative)
        found[said] = (a.mean().item(), a.std().item() / n**0.5)
        fit = caption_fit(denoiser, state, denoiser(state.x_t, state.t, b.cond), probe).fit
        torch.testing.assert_close(fit, a.clamp(0, 1).detach(), rtol=EXACT64, atol=1e-12)
    assert abs(found[0][0] - 1) < 4 * found[0][1], f"right captions: {found[0]}"
    assert abs(found[1][0]) < 4 * found[1][1], f"wrong captions, from which the right one leads away: {found[1]}"


def test_every_other_direction_counts_every_state():
    denoiser = Toy()
    (state,) = forward_noise(denoiser, batch(denoiser), replace(PROBE, times=(300,)), 0)
    state = state.at(state.x_t.requires_grad_())
    for name, direction in DIRECTIONS.items():
        if name != "caption_fit":
            assert (direction(denoiser, state, denoiser(state.x_t, state.t, state.batch.cond), PROBE).fit == 1).all()


def test_there_are_no_more_negatives_than_other_captions():
    denoiser = Toy()
    denoiser.negative, denoiser.combinations = "other_label", ("0", "1", "2")
    assert [negative_count(denoiser, asked) for asked in (1, 2, 3)] == [1, 2, 2]
    denoiser.negative = "empty"
    assert negative_count(denoiser, 3) == 1, "the empty condition is one"


def test_it_is_refused_where_no_noise_is_known():
    with pytest.raises(ValueError, match="sampling has no noise; choose forward_noise or ddim_inversion"):
        Method(PROBE, Probe("sampling", "caption_fit"))
    state = State(Batch(("a",), {}, {}), drawn(1, 2, 4, 4), 500)
    with pytest.raises(ValueError, match="caption_fit needs noise"):
        caption_fit(Told(), state, Prediction(drawn(1, 2, 4, 4), drawn(1, 2, 4, 4)), PROBE)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weight='two' is not known; expected one of: one, squared_error"):
        replace(METHODS["trak"], weight="two")
