"""bfloat16 and float16 against float64: what the network itself rounds is all that is lost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.features import Features, compute_features
from concept_trak.attribution.gradients.accumulate import feature_sums
from concept_trak.attribution.gradients.factors import DenseGradient, FactoredGradient
from concept_trak.attribution.gradients.pull_back import pull_back, pull_back_naive
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import METHODS, FeatureSpec
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch, Direction, Probe
from concept_trak.attribution.trajectory import TRAJECTORIES
from concept_trak.models import load_model, small
from tests.tolerances import EXACT64, least_cosine_of, rounding

CAPTIONS = ["a red circle", "a blue square", "blue"]
LOW = [torch.bfloat16, torch.float16]
WHERE = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ONE_TIME = Probe("forward_noise", "denoising_error", times=(400,))


@pytest.fixture(scope="module", params=["latents", "patches"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    {"latents": small.latent_pipeline, "patches": small.patch_pipeline}[request.param](
        0, resolution=16
    ).save_pretrained(folder)
    return folder


def opened(path: Path, dtype: torch.dtype, device: str = "cpu") -> Denoiser:
    return load_model(
        str(path), parameters=r"\.(weight|bias)$", device=device, precision=str(dtype).removeprefix("torch.")
    )


def batch(denoiser: Denoiser) -> Batch:
    """Images as a worker hands them on: float32, or what is wider."""
    ids = tuple(f"s{i}" for i in range(len(CAPTIONS)))
    x_0 = torch.stack([normal(denoiser.shape, name, "x_0") for name in ids])
    x_0 = x_0.to(denoiser.device, torch.promote_types(denoiser.dtype, torch.float32))
    return Batch(ids, denoiser.encode(CAPTIONS), denoiser.encode([""] * len(ids)), x_0)


def calls(denoiser: Denoiser) -> int:
    """How many layers one evaluation calls."""
    count, b = [], batch(denoiser)
    leaves = [m for m in denoiser.network.modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_hook(lambda *_: count.append(1)) for m in leaves]
    with torch.no_grad():
        denoiser(b.x_0, 400, b.cond)
    for handle in handles:
        handle.remove()
    return len(count)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten(1).double().cpu() for g in gradients.values()], 1)


@pytest.mark.parametrize("device", WHERE)
def test_a_v_below_float16_is_pulled_back_to_its_rounding(path, device):
    """v of size 1e-10: a plain float16 backward gives zeros, ours what float64 gives."""
    low, high = opened(path, torch.float16, device), opened(path, torch.float64)
    (state,) = TRAJECTORIES["forward_noise"](low, batch(low), ONE_TIME, 0)
    (exact,) = TRAJECTORIES["forward_noise"](high, batch(high), ONE_TIME, 0)
    v = 1e-10 * torch.stack([normal(low.shape, i, "v") for i in range(len(CAPTIONS))])

    def pointer(s, seen):
        return Direction(v[: len(s.x_t)].to(seen.eps), torch.ones(len(s.x_t)))

    eps = low(state.x_t, state.t, state.batch.cond).eps
    plain = torch.autograd.grad(eps, list(low.parameters.values()), v.to(eps), allow_unused=True)
    assert not any(g.any() for g in plain if g is not None), "float16 knows this v: the test shows nothing"
    ours = flat(pull_back(low, state, [pointer])[0].dense())
    rows = [exact.rows(slice(i, i + 1)) for i in range(len(CAPTIONS))]
    theirs = torch.cat([
        flat(pull_back_naive(high, row, lambda s, seen, i=i: Direction(v[i : i + 1].to(seen.eps), torch.ones(1)))[0])
        for i, row in enumerate(rows)
    ])  # fmt: skip
    error = ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()
    assert error < rounding(torch.float16, calls(high)), (
        f"off by {error:.1e}: v is not brought near 1 before the backward, or its power of two not put back"
    )


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", ["trak", "concept_b"])
def test_features_in_few_bits_point_where_float64_does(path, name, dtype, device):
    """From images to the projected sum: the path, the direction, the norms and the projector included.

    Not of rows that point along eps_c - eps_neg: of an untrained network that is a hundredth of eps, so rounding is a
    hundred times as large beside it. Nor after a guided inversion, which on such a network leads elsewhere.
    """
    row = METHODS[name]
    probe = replace(row.train, times=(300, 700))

    def made(denoiser: Denoiser) -> Features:
        return compute_features(denoiser, Projector("kronecker", 1024), FeatureSpec(probe, True), batch(denoiser), 0)

    high = opened(path, torch.float64)
    low, exact = made(opened(path, dtype, device)).phi, made(high).phi
    assert low.dtype == torch.float32
    cosine = torch.cosine_similarity(low.double().cpu(), exact).min().item()
    least = least_cosine_of(rounding(dtype, calls(high)))
    assert cosine > least, f"{name} in {dtype}: cosine {cosine:.5f}, below the {least:.5f} that rounding explains"


@pytest.mark.parametrize("trajectory", ["forward_noise", "ddim_inversion"])
def test_states_are_not_rounded_to_the_network(path, trajectory):
    """x_t stands in float32; of noised states even every bit is float32's own."""
    low, wide = opened(path, torch.bfloat16), opened(path, torch.float32)
    probe = Probe(trajectory, "reconstruction_reward", times=(300, 900), points=6, every=2, guidance=1.0)
    with torch.no_grad():
        some, others = (list(TRAJECTORIES[trajectory](d, batch(d), probe, 0)) for d in (low, wide))
    for a, b in zip(some, others, strict=True):
        assert a.x_t.dtype == torch.float32
        assert not torch.equal(a.x_t, a.x_t.bfloat16().float())
        assert trajectory == "ddim_inversion" or torch.equal(a.x_t, b.x_t)


def test_a_reward_far_below_float16_keeps_its_direction(path):
    """grad_x of the mean over D elements, then 2 / D: in a larger space than this one float16 would see only zeros."""
    probe = Probe("forward_noise", "reconstruction_reward", times=(400,))
    found = {}
    for dtype in (torch.float16, torch.float64):
        d = opened(path, dtype)
        (state,) = TRAJECTORIES["forward_noise"](d, batch(d), probe, 0)
        state = state.at(state.x_t.requires_grad_())
        seen = d(state.x_t, state.t, state.batch.cond)
        found[dtype] = DIRECTIONS["reconstruction_reward"](d, state, seen, probe).v.double().flatten(1)
    error = (found[torch.float16] - found[torch.float64]).norm(dim=1) / found[torch.float64].norm(dim=1)
    assert error.max() < rounding(torch.float16, calls(d))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_sums_and_norms_are_float32(dtype):
    """256 pieces of 2^-12 beside a 1, which neither dtype would notice one by one; squares beyond float16."""
    shape, one = (4, 6), torch.ones(1)
    parameters = {"w": torch.zeros(shape, dtype=dtype)}
    with feature_sums(Projector("identity"), parameters, 1, 1, Workspace()) as (total,):
        for value in (1.0, *[2.0**-12] * 256):
            total.add({"w": DenseGradient(torch.full((1, *shape), value, dtype=dtype))}, one)
        assert (total.phi() == 1 + 256 * 2.0**-12).all(), "the sum over states is rounded at every state"
    large = torch.full((1, 2, 8), 512.0, dtype=dtype)
    assert DenseGradient(large).squared_norm().item() == 16 * 512.0**2
    product = FactoredGradient(large, large, (8, 8))
    assert product.squared_norm().item() == pytest.approx(64 * (2 * 512.0**2) ** 2, rel=EXACT64)
