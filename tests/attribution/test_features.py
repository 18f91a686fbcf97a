"""Rows of the method table over the loop that composes them."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from concept_trak import UserError
from concept_trak.attribution import direction as direction_module
from concept_trak.attribution.features import compute_features, features_naive
from concept_trak.attribution.fisher import gram, solve
from concept_trak.attribution.method import METHODS, FeatureSpec, Method, method_settings
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.ranking import scores
from concept_trak.attribution.state import Direction, Probe
from concept_trak.models.gaussian import Gaussian, Settings
from tests.tolerances import EXACT64
from tests.toys import Toy, batch

LADDER = ["trak", "concept_a", "concept_b", "concept_c", "concept_trak"]
P = Projector("sketch", 64)


def train(method: Method, denoiser, b, projector=P, seed=0):
    return compute_features(denoiser, projector, FeatureSpec(method.train, method.unit, method.weight), b, seed)


def times(pointed: Direction, factor: float) -> Direction:
    return pointed._replace(v=factor * pointed.v)


def changed(a: dict, b: dict) -> list[str]:
    """The parts of a row that differ: each side's trajectory (with the numbers that belong to it), direction, and the
    rest.
    """

    def parts(row):
        sides = {f"{side}.direction": row[side].pop("direction") for side in ("train", "query")}
        paths = {f"{side}.trajectory": row.pop(side) for side in ("train", "query")}
        return sides | paths | row

    first, second = parts(a), parts(b)
    return [name for name in first if first[name] != second[name]]


@pytest.mark.parametrize(("one", "next_one"), list(pairwise(LADDER)))
def test_neighbours_of_the_ablation_differ_in_one_field(one, next_one):
    """A -> B -> C -> D change one field; TRAK -> A changes the query side as a whole, which is one thing: the
    utility.
    """
    differing = changed(method_settings(METHODS[one]), method_settings(METHODS[next_one]))
    if one == "trak":
        assert {name.split(".")[0] for name in differing} == {"query"}
    else:
        assert len(differing) == 1, f"{one} -> {next_one} changes {differing}"


def test_the_table_is_the_published_one():
    row = METHODS["concept_trak"]
    assert asdict(row.train) | {"times": None} == asdict(
        Probe("ddim_inversion", "reconstruction_reward", guidance=7.5)
    ) | {"times": None}
    assert (row.query.trajectory, row.query.direction, row.unit, row.weight) == (
        "sampling",
        "concept_reward",
        True,
        "one",
    )
    assert METHODS["das"].weight == "squared_error"
    assert not METHODS["das"].unit


@pytest.mark.parametrize("name", METHODS)
def test_every_row_runs_and_a_sample_does_not_depend_on_its_batch(name):
    denoiser = Toy()
    whole = train(METHODS[name], denoiser, batch(denoiser))
    alone = train(METHODS[name], denoiser, batch(denoiser).rows(slice(2, 3)))
    assert whole.phi.shape == (5, 64)
    assert torch.isfinite(whole.phi).all()
    assert (whole.states == len(METHODS[name].train.states)).all()
    torch.testing.assert_close(whole.phi[2:3], alone.phi, rtol=EXACT64, atol=1e-13 * whole.phi.abs().max().item())
    torch.testing.assert_close(whole.weight[2:3], alone.weight, rtol=1e-6, atol=0)
    assert (whole.weight == 1).all() == (METHODS[name].weight == "one")
    query = compute_features(denoiser, P, METHODS[name].query_spec, batch(denoiser, 2), 0)
    assert (query.states == 9).all()


def test_a_direction_times_ten_changes_nothing_under_unit_norm(monkeypatch):
    denoiser, row = Toy(), METHODS["concept_trak"]
    loose = replace(row, unit=False)
    before, before_loose = train(row, denoiser, batch(denoiser)), train(loose, denoiser, batch(denoiser))
    original = direction_module.DIRECTIONS["reconstruction_reward"]
    monkeypatch.setitem(direction_module.DIRECTIONS, "reconstruction_reward", lambda *a: times(original(*a), 10))
    after, after_loose = train(row, denoiser, batch(denoiser)), train(loose, denoiser, batch(denoiser))
    torch.testing.assert_close(after.phi, before.phi, rtol=EXACT64, atol=1e-14)
    torch.testing.assert_close(after_loose.phi, 10 * before_loose.phi, rtol=EXACT64, atol=1e-18)


def test_the_norm_is_taken_per_state_over_all_parameters():
    """nine unit vectors: the summed feature is at most 9 long, and exactly 1 with a single state."""
    denoiser = Toy()
    row = replace(METHODS["caption_trak"], train=replace(METHODS["caption_trak"].train, times=(500,)))
    phi = train(row, denoiser, batch(denoiser), Projector("identity")).phi
    torch.testing.assert_close(phi.norm(dim=1), torch.ones(5).double(), rtol=EXACT64, atol=0)


def test_the_weight_of_das_is_the_summed_squared_error():
    denoiser, b, probe = Toy(), batch(Toy()), METHODS["das"].train
    expected = torch.zeros(5).double()
    from concept_trak.attribution.trajectory import forward_noise

    for s in forward_noise(denoiser, b, probe, 0):
        expected += (s.noise - denoiser(s.x_t, s.t, b.cond).eps).square().mean((1, 2, 3)).detach()
    torch.testing.assert_close(train(METHODS["das"], denoiser, b).weight.double(), expected, rtol=1e-6, atol=0)


def test_a_sample_without_direction_is_counted_out():
    denoiser = Toy()
    b = batch(denoiser)
    b.negative["label"][1] = b.cond["label"][1]
    found = train(METHODS["caption_trak"], denoiser, b)
    assert found.states.tolist() == [9, 0, 9, 9, 9], "equal conditions must give no direction, not noise"
    assert (found.phi[1] == 0).all()


def test_influence_across_classes_of_the_gaussian_is_exactly_zero():
    """The means are owned by their classes: with P = I a sample of another class has score 0.0, one of its own has
    not.
    """
    gaussian = Gaussian(Settings(classes=3))
    b = batch(gaussian, 6)
    row = METHODS["concept_trak"]
    phi = train(row, gaussian, b, Projector("identity")).phi
    query = b.rows(slice(0, 1))
    phi_q = compute_features(gaussian, Projector("identity"), row.query_spec, query, 0).phi
    labels = b.cond["label"]
    own, against = labels == 0, labels == query.without["label"][0]
    raw = phi @ phi_q[0]
    assert (raw[~own & ~against] == 0).all(), "a class that the query never names has influence"
    assert (raw[own] != 0).all()
    k = gram(phi)
    z = solve(k.matrix, k.damped(1.0), phi_q).z
    assert (scores(phi, torch.ones(6), z)[~own & ~against].abs() == 0).all()


def test_a_flipped_sign_flips_the_scores(monkeypatch):
    denoiser, row = Toy(), METHODS["concept_trak"]
    b = batch(denoiser)
    phi = train(row, denoiser, b).phi
    right = phi @ compute_features(denoiser, P, row.query_spec, b, 0).phi.mean(0)
    original = direction_module.DIRECTIONS["concept_reward"]
    monkeypatch.setitem(direction_module.DIRECTIONS, "concept_reward", lambda *a: times(original(*a), -1))
    flipped = phi @ compute_features(denoiser, P, row.query_spec, b, 0).phi.mean(0)
    torch.testing.assert_close(flipped, -right, rtol=EXACT64, atol=1e-14)


def test_training_on_a_positively_scored_sample_improves_the_reward():
    """The sign rule: for denoising_error a positive plain score means a step on i lowers the query's loss."""
    denoiser, row = Toy(), METHODS["trak"]
    b = batch(denoiser, 6)
    phi = train(row, denoiser, b, Projector("identity")).phi

    def loss(rows: slice) -> float:
        from concept_trak.attribution.trajectory import forward_noise

        part = b.rows(rows)
        with torch.no_grad():
            return sum(
                (s.noise - denoiser(s.x_t, s.t, part.cond).eps).square().mean().item()
                for s in forward_noise(denoiser, part, row.train, 0)
            )

    before, step = loss(slice(0, 1)), 1e-5
    for i in range(1, 6):
        saved, at = [p.detach().clone() for p in denoiser.parameters.values()], 0
        for p in denoiser.parameters.values():
            p.data -= step * phi[i, at : at + p.numel()].reshape(p.shape)
            at += p.numel()
        change = (loss(slice(0, 1)) - before) / -step
        for p, old in zip(denoiser.parameters.values(), saved, strict=True):
            p.data = old
        assert abs(change / (phi[i] @ phi[0]).item() - 1) < 0.02, (
            "score is not the first-order effect of a training step"
        )


@pytest.mark.parametrize("name", METHODS)
def test_the_stated_cost_is_the_number_of_forwards_plus_two_a_backward(name):
    denoiser, row, seen = Toy("wide"), METHODS[name], []  # a layer with a rule: nothing is replayed
    b = batch(denoiser, 1)
    b = replace(b, others=(b.negative,) * (row.train.negatives - 1))
    denoiser.network.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    train(row, denoiser, b)
    backwards = len(row.train.states) * (2 if row.train.direction == "reconstruction_reward" else 1)
    assert row.train.evaluations == sum(seen) + 2 * backwards


def test_rows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expected one of: forward_noise"):
        Method(Probe("inversion", "prediction"), Probe("sampling", "prediction"))
    with pytest.raises(ValueError, match="train side"):
        Method(Probe("sampling", "prediction"), Probe("sampling", "prediction"))
    with pytest.raises(ValueError, match=r"1 \.\.\. 999"):
        Probe("forward_noise", "prediction", times=(0,))
    with pytest.raises(ValueError, match="points >= 3"):
        Probe("ddim_inversion", "prediction", every=60)
    with pytest.raises(UserError, match=r"exponent=0.0: expected a number in \(0, 1\]"):
        replace(METHODS["fit_trak"], exponent=0.0)
    with pytest.raises(UserError, match="set unit=true and over=layer"):
        replace(METHODS["concept_trak"], exponent=0.5)


@pytest.mark.parametrize("kind", ["identity", "mask", "rademacher", "sketch", "kronecker"])
@pytest.mark.parametrize("name", ["das", "concept_trak", "fit_trak", "tempered_trak"])
def test_the_loop_equals_the_formula_written_out(name, kind):
    """`compute_features` against `features_naive`, in float64: norms over nothing, all, each layer, and tempered."""
    denoiser, row, projector = Toy(), METHODS[name], Projector(kind, 64)
    spec = row.train_spec._replace(probe=replace(row.train, times=(300, 700), points=7, every=2, doubt=1e9))
    b = batch(denoiser, 3)
    fast, naive = compute_features(denoiser, projector, spec, b, 0).phi, features_naive(denoiser, projector, spec, b, 0)
    assert (naive.norm(dim=1) > 0).all()
    torch.testing.assert_close(fast, naive, rtol=0, atol=EXACT64 * naive.norm(dim=1).min().item())
