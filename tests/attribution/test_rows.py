"""Every row of the method table agrees with a second implementation of its published formula (`written_out`)."""

from dataclasses import replace

import pytest
import torch

from concept_trak.attribution import query
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, negatives
from concept_trak.attribution.direction import DIRECTIONS, WEIGHTS
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.fisher import gram, solve, solve_dual
from concept_trak.attribution.method import METHODS, Method
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import query_batch
from concept_trak.attribution.ranking import scores
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import TRAJECTORIES
from concept_trak.models import load_model, small
from tests import written_out
from tests.tolerances import EXACT64

CAPTIONS = ["a red circle", "a blue square", "a green triangle", "a red square", "a blue circle", "a green circle"]
CONCEPT = Concept("triangle", prompt="a red triangle", without_prompt="a red circle", samples=2, seed=5)
SEED = 0
DOUBT = 2.4
"""Random weights know every fit to worse than the table's 0.25; up to this they know some of them and not others."""
# Parameters of several kinds, before and behind the text: about 1000 numbers, more than there are samples, as in use.
UNET = r"^conv_out\.|^conv_in\.bias|^mid_block.*(attn2\.to_q|attn2\.to_out|norm2\.(weight|bias))"
TRANSFORMER = r"^(scale_shift_table|proj_out\.bias)$|^transformer_blocks\.1\.scale_shift_table"


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Denoiser:
    """A UNet of random weights that predicts the noise of latents of 2 x 2."""
    folder = tmp_path_factory.mktemp("latents")
    small.latent_pipeline(0, resolution=8).save_pretrained(folder)
    return load_model(str(folder), parameters=UNET, precision="float64")


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> Denoiser:
    """A transformer of random weights that predicts v on 8 x 8 pixels, attributed to what no layer rule covers."""
    folder = tmp_path_factory.mktemp("patches")
    small.patch_pipeline(0, resolution=8).save_pretrained(folder)
    return load_model(str(folder), parameters=TRANSFORMER, precision="float64")


def trained_on(denoiser: Denoiser) -> Batch:
    ids = tuple(f"s{i}" for i in range(len(CAPTIONS)))
    x_0 = torch.stack([normal(denoiser.shape, name, "x_0") for name in ids]).double()
    others = tuple(denoiser.encode([*CAPTIONS[i:], *CAPTIONS[:i]]) for i in (1, 2))
    return Batch(ids, denoiser.encode(CAPTIONS), negatives(denoiser, ids, CAPTIONS, SEED), x_0, others=others)


def few(probe: Probe) -> Probe:
    """Three or four states instead of nine, and more doubt."""
    times = probe.times[-8::3] if len(probe.times) > 3 else probe.times
    return replace(probe, times=times, points=11, every=2, doubt=DOUBT)


def shortened(row: Method) -> Method:
    return replace(row, train=few(row.train), query=few(row.query))


def require_equal(ours, theirs, what: str, tolerance: float) -> None:
    error = ((ours.detach() - theirs).abs().max() / theirs.abs().max()).item()
    assert error < tolerance, f"{what}: differs by {error:.1e} of the largest from the formula written out"


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_its_published_formula(latents, name):
    require_agreement(latents, name, METHODS[name])


def test_some_states_are_shut_out_and_some_count_in_part(latents):
    """Or else the comparison above would say nothing of the shares, and of what they are believed for."""
    shares, all_believed = (shares_of(latents, replace(METHODS["fit_trak"].train, doubt=d)) for d in (DOUBT, 1e9))
    assert any(a == 0 for a in all_believed), all_believed
    assert any(0 < a < 1 for a in shares), shares
    assert any(a == 0 and b > 0 for a, b in zip(shares, all_believed, strict=True)), "nothing is doubted"


def shares_of(model: Denoiser, probe: Probe) -> list[float]:
    return [
        a
        for one in written_out.ones(trained_on(model))
        for at in written_out.forward_noise(model, one, probe, SEED)
        for a in written_out.shares(model, one, at, probe)
    ]


def test_so_it_is_for_a_norm_near_that_of_the_whole(latents):
    require_agreement(latents, "fit_trak, exponent 0.25", replace(METHODS["fit_trak"], exponent=0.25))


@pytest.mark.parametrize("name", ["concept_trak", "fit_trak"])
def test_so_it_is_for_a_transformer_that_predicts_v(patches, name):
    require_agreement(patches, name, METHODS[name])


def require_agreement(denoiser: Denoiser, name: str, row: Method) -> None:
    """Of both sides' features, the weights, and the scores in both forms of the solve."""
    row, plain, batch = shortened(row), Projector("identity"), trained_on(denoiser)
    phi, weights = written_out.train_side(denoiser, row, written_out.ones(batch), SEED)
    made = compute_features(denoiser, plain, row.train_spec, batch, SEED)
    require_equal(made.phi, phi, f"{name}, {row.train.trajectory} with {row.train.direction}", EXACT64)
    require_equal(made.weight, weights, f"{name}, weight {row.weight}", EXACT64)

    asked = query_batch(denoiser, CONCEPT)
    phi_q = written_out.query_side(denoiser, row, written_out.ones(asked), CONCEPT.seed)
    method, answering = query.resolve_query(denoiser, row, CONCEPT, asked)
    found = compute_features(denoiser, plain, method.query_spec, answering, CONCEPT.seed).phi.mean(0, keepdim=True)
    require_equal(found[0], phi_q, f"{name}, query, {row.query.trajectory} with {row.query.direction}", EXACT64)

    k, unweighted = gram(made.phi), torch.ones(len(phi), dtype=torch.float64)
    for damping in (0.1, 100.0):
        expected, lam = written_out.scores(phi, unweighted, phi_q, damping), k.damped(damping)
        for form, solved in (("primal", solve(k.matrix, lam, found)), ("dual", solve_dual(made.phi, lam, found))):
            score = scores(made.phi, unweighted, solved.z)[:, 0]
            require_equal(score, expected, f"{name}, {form} scores at damping {damping}", EXACT64)
            weighted = scores(made.phi, made.weight.double(), solved.z)[:, 0]
            whole = written_out.scores(phi, weights, phi_q, damping)
            require_equal(weighted, whole, f"{name}, {form} weighted scores at damping {damping}", EXACT64)


@pytest.mark.parametrize(
    ("table", "what", "change"),
    [
        (TRAJECTORIES, "trajectory", lambda row: replace(row, train=replace(row.train, trajectory="new"))),
        (DIRECTIONS, "direction", lambda row: replace(row, train=replace(row.train, direction="new"))),
        (WEIGHTS, "weight", lambda row: replace(row, weight="new")),
    ],
    ids=["trajectory", "direction", "weight"],
)
def test_a_new_row_without_its_formula_is_not_passed_over(latents, monkeypatch, table, what, change):
    monkeypatch.setitem(table, "new", next(iter(table.values())))
    with pytest.raises(AssertionError, match=f"the {what} 'new' of a row of METHODS has no written-out twin"):
        require_agreement(latents, "trak", change(METHODS["trak"]))
