"""Per-sample gradients of real UNets and transformers, where every layer of a text-to-image model occurs."""

import logging
from dataclasses import replace

import pytest
import torch

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.gradients.accumulate import gradient_norms
from concept_trak.attribution.gradients.layer_rules import has_rule
from concept_trak.attribution.gradients.pull_back import pull_back, pull_back_naive
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import METHODS, FeatureSpec
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise
from concept_trak.models import load_model
from tests import written_out
from tests.tolerances import BATCH32, EXACT64, GUIDED32, NOTHING

OF_LAYERS = r"\.(weight|bias)$"  # what layers own: everything but a transformer's tables of shifts
CAPTIONS = ["a red circle", "a blue square", "a green triangle", "blue"]


def batch(denoiser: Denoiser) -> Batch:
    ids = tuple(f"s{i}" for i in range(len(CAPTIONS)))
    x_0 = torch.stack([normal(denoiser.shape, name, "x_0") for name in ids]).to(denoiser.dtype)
    return Batch(ids, denoiser.encode(CAPTIONS), denoiser.encode([""] * len(ids)), x_0)


@pytest.mark.parametrize("direction", ["reconstruction_reward", "caption_reward"])
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("pixels", "all"), ("latents", "all"), ("patches", OF_LAYERS), ("patches", "all")],
)
def test_every_parameter_is_pulled_back_by_its_layer(saved, kind, parameters, direction, caplog):
    denoiser = load_model(str(saved(kind)), parameters=parameters, precision="float64")
    (state,) = forward_noise(denoiser, batch(denoiser).rows(slice(0, 3)), Probe("forward_noise", direction, (400,)), 0)

    def pointer(s, seen):
        return DIRECTIONS[direction](denoiser, s, seen, Probe("forward_noise", direction))

    with caplog.at_level(logging.INFO, logger=Workspace.__module__):
        found = pull_back(denoiser, state, [pointer])[0]
    fast, seen, v = found.dense(), found.prediction, found.direction.v
    slow = [r.getMessage() for r in caplog.records if r.name == Workspace.__module__]
    assert not slow, "parameters go one sample at a time, which doubles the work"
    slow, seen_slow, (v_slow, _) = pull_back_naive(denoiser, state, pointer)
    torch.testing.assert_close(seen.eps, seen_slow.eps, rtol=EXACT64, atol=EXACT64)
    assert (v - v_slow).norm() < EXACT64 * v_slow.norm()
    assert list(fast) == list(slow) == list(denoiser.parameters)
    whole = torch.cat([g.flatten(1) for g in slow.values()], 1).norm(dim=1)
    length, _ = gradient_norms(found.gradients, "all")
    torch.testing.assert_close(length["all"] * found.scale, whole, rtol=EXACT64, atol=0)
    assert (whole > 0).all()
    for name in fast:
        error, size = (fast[name] - slow[name]).flatten(1).norm(dim=1), slow[name].flatten(1).norm(dim=1)
        relative = (error / size.clamp_min(NOTHING * whole.min())).max()
        assert relative < EXACT64, f"the layer rule that covers {name} is wrong by {relative:.1e}"


@pytest.mark.parametrize("direction", [name for name in written_out.LOSSES if name != "concept_reward"])
def test_a_direction_pulled_back_is_the_gradient_of_its_loss(path, direction):
    """J^T v of every parameter against autograd through the published loss, which forms no v."""
    denoiser, probe = load_model(str(path), precision="float64"), Probe("forward_noise", direction, (400,))
    given = {
        "target": torch.full((2, *denoiser.shape), 0.1).double(),
        "classifier": lambda x_0: x_0.flatten(1).sin().sum(1),
    }
    b = replace(batch(denoiser).rows(slice(0, 2)), **given)
    (state,) = forward_noise(denoiser, b, probe, 0)
    fast = pull_back(denoiser, state, [lambda s, seen: DIRECTIONS[direction](denoiser, s, seen, probe)])[0].dense()
    for i, one in enumerate(written_out.ones(b)):
        at = written_out.Stand(state.x_t[i : i + 1], state.t, state.noise[i : i + 1])
        slow = written_out.gradient(denoiser, written_out.LOSSES[direction](denoiser, one, at, probe))
        error = (torch.cat([g[i].flatten() for g in fast.values()]) - slow).norm() / slow.norm()
        assert error < EXACT64, f"{direction}: J^T v differs by {error:.1e} from the gradient of the loss"


def test_the_common_layers_have_rules(path):
    """Only the pooled text's position, one small vector, and a transformer's tables of shifts have none."""
    network = load_model(str(path)).network
    owners = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    others = {"AttentionPooling", "BasicTransformerBlock", "PixArtTransformer2DModel"}
    assert {type(m).__name__ for m in owners if not has_rule(m)} <= others, "a common layer goes one by one"
    small = [(n, p.numel()) for m in owners if not has_rule(m) for n, p in m.named_parameters(recurse=False)]
    assert sum(size for _, size in small) < 0.01 * sum(p.numel() for p in network.parameters()), small


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("trak", torch.float32, BATCH32),
        ("caption_trak", torch.float32, BATCH32),
        pytest.param("concept_trak", torch.float32, GUIDED32, marks=pytest.mark.soak),
        ("concept_trak", torch.float64, EXACT64),
    ],
)
def test_a_feature_does_not_depend_on_its_batch(path, name, dtype, tolerance):
    """Few states of each kind; in float32 the kernels chosen for a batch of four round differently."""
    row, denoiser, projector = (
        METHODS[name],
        load_model(str(path), precision=str(dtype).removeprefix("torch.")),
        Projector("sketch", 256),
    )
    probe = replace(row.train, times=(100, 500, 900), points=13, every=5)
    b = batch(denoiser)
    whole = compute_features(denoiser, projector, FeatureSpec(probe, row.unit), b, 0)
    assert (whole.states == len(probe.states)).all()
    for i in range(len(b.ids)):
        alone = compute_features(denoiser, projector, FeatureSpec(probe, row.unit), b.rows(slice(i, i + 1)), 0)
        error = ((whole.phi[i] - alone.phi[0]).norm() / alone.phi[0].norm()).item()
        assert error < tolerance, f"{b.ids[i]} under {name} differs by {error:.1e} between a batch of 4 and of 1"
