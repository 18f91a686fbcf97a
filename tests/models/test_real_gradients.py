"""Per-sample gradients of real UNets, where every layer of a text-to-image model occurs."""

import logging
from dataclasses import replace

import pytest
import torch

from concept_trak import gradient
from concept_trak.direction import DIRECTIONS
from concept_trak.features import features
from concept_trak.gradient import norm, pull_back, pull_back_naive
from concept_trak.layer import ruled
from concept_trak.method import METHODS
from concept_trak.models.text_to_image import TextToImage
from concept_trak.noise import normal
from concept_trak.probe import Probe
from concept_trak.projector import Projector
from concept_trak.state import Batch
from concept_trak.trajectory import forward_noise
from tests.tolerances import BATCH32, EXACT64, GUIDED32, NOTHING

CAPTIONS = ["a red circle", "a blue square", "a green triangle", "blue"]


def batch(denoiser: TextToImage) -> Batch:
    ids = tuple(f"s{i}" for i in range(len(CAPTIONS)))
    x_0 = torch.stack([normal(denoiser.shape, name, "x_0") for name in ids]).to(denoiser.dtype)
    return Batch(ids, denoiser.encode(CAPTIONS), denoiser.encode([""] * len(ids)), x_0)


@pytest.mark.parametrize("direction", ["reconstruction_reward", "caption_reward"])
def test_every_parameter_of_a_real_unet_is_pulled_back_by_its_layer(path, direction, caplog, monkeypatch):
    monkeypatch.setattr(gradient, "_said", set())  # said once a process: another test may have
    denoiser = TextToImage(str(path), dtype=torch.float64)
    (state,) = forward_noise(denoiser, batch(denoiser).rows(slice(0, 3)), Probe("forward_noise", direction, (400,)), 0)

    def pointer(s, seen):
        return DIRECTIONS[direction](denoiser, s, seen, Probe("forward_noise", direction))

    with caplog.at_level(logging.INFO, logger=gradient.__name__):
        fast, seen, v = pull_back(denoiser, state, pointer)
    assert not caplog.messages, "some parameters of a common UNet go one sample at a time, which doubles the work"
    slow, seen_slow, v_slow = pull_back_naive(denoiser, state, pointer)
    torch.testing.assert_close(seen.eps, seen_slow.eps, rtol=EXACT64, atol=EXACT64)
    assert (v - v_slow).norm() < EXACT64 * v_slow.norm()
    assert list(fast) == list(slow) == list(denoiser.parameters)
    whole = norm(slow)
    assert (whole > 0).all()
    for name in fast:
        error, size = (fast[name] - slow[name]).flatten(1).norm(dim=1), slow[name].flatten(1).norm(dim=1)
        relative = (error / size.clamp_min(NOTHING * whole.min())).max()
        assert relative < EXACT64, f"the layer rule that covers {name} is wrong by {relative:.1e}"


def test_the_common_layers_have_rules(path):
    """Only the pooled text's position is replayed sample by sample: one small vector."""
    network = TextToImage(str(path)).network
    owners = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    assert {type(m).__name__ for m in owners if not ruled(m)} <= {"AttentionPooling"}, "a common layer goes one by one"


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("trak", torch.float32, BATCH32),
        ("caption_trak", torch.float32, BATCH32),
        ("concept_trak", torch.float32, GUIDED32),
        ("concept_trak", torch.float64, EXACT64),
    ],
)
def test_a_feature_does_not_depend_on_its_batch(path, name, dtype, tolerance):
    """Few states of each kind; in float32 the kernels chosen for a batch of four round differently."""
    row, denoiser, projector = METHODS[name], TextToImage(str(path), dtype=dtype), Projector("sketch", 256)
    probe = replace(row.train, times=(100, 500, 900), points=13, every=5)
    b = batch(denoiser)
    whole = features(denoiser, projector, probe, b, 0, row.unit)
    assert (whole.states == len(probe.states)).all()
    for i in range(len(b.ids)):
        alone = features(denoiser, projector, probe, b.rows(slice(i, i + 1)), 0, row.unit)
        error = ((whole.phi[i] - alone.phi[0]).norm() / alone.phi[0].norm()).item()
        assert error < tolerance, f"{b.ids[i]} under {name} differs by {error:.1e} between a batch of 4 and of 1"
