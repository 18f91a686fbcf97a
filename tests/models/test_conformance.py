"""What every family owes, whatever its network: one suite over tiny random instances of the real classes.

The reference is diffusers' own pipeline, run by its own call, and what it tells its network.
"""

import re
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from concept_trak.attribution.batch_size import _LivingBytes
from concept_trak.attribution.denoiser import Condition, Denoiser, concat_conditions, take_rows
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.gradients import separable_layers
from concept_trak.attribution.gradients.layer_rules import has_rule
from concept_trak.attribution.gradients.pull_back import pull_back
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import ddim_inversion, ddim_step, forward_noise, sampling
from concept_trak.audit.checks import ROUNDING, batch_consistency
from concept_trak.models import load_model
from concept_trak.models.offload import weight_bytes
from tests import written_out
from tests.models.families import FAMILIES, Tiny, images, seeded
from tests.tolerances import EXACT64, TABLE32

TOLD64 = 1e-6  # relative, a network told its time in float64 against one told in float32; measured 1e-7


@dataclass(frozen=True)
class Opened:
    tiny: Tiny
    pipe: Any
    path: Path
    denoiser: Denoiser

    def states(self, b: int) -> Tensor:
        return torch.stack([normal(self.denoiser.shape, 0, i, "x") for i in range(b)]).double()

    def batch(self, b: int = 2) -> Batch:
        d, texts = self.denoiser, list(self.tiny.texts)
        cond = d.encode(texts[:b]) | (d.encode_image(images(d, b)) if d.takes_image else {})
        negative = cond | d.encode(texts[-1:] * b) | d.empty_image(b)
        return Batch(tuple(f"s{i}" for i in range(b)), cond, negative, self.states(b))

    def conditions(self, texts: list[str], denoiser: Denoiser | None = None) -> Condition:
        """Of each text, all with one image if the family takes one."""
        d = denoiser or self.denoiser
        image = d.encode_image(images(d, 1)) if d.takes_image else {}
        return d.encode(texts) | {name: value.expand(len(texts), *value.shape[1:]) for name, value in image.items()}

    def load(self, **ways: Any) -> Denoiser:
        return load_model(str(self.path), **self.tiny.ways, **ways)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Opened:
    tiny: Tiny = FAMILIES[request.param]
    path = tmp_path_factory.mktemp(request.param)
    pipe = seeded(tiny.build)
    pipe.save_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as diffusers would have loaded it: T5 drops out
    return Opened(tiny, pipe.to(torch.float64), path, load_model(str(path), **tiny.ways, precision="float64"))


def test_the_prediction_is_affine_and_shaped_like_the_state(family):
    d, b = family.denoiser, family.batch(3)
    side = d.resolution
    assert d.to_latent(torch.zeros(2, 3, *family.tiny.clip, side, side)).shape == (2, *d.shape)
    assert d.to_pixels(family.states(2)).shape == (2, 3, side, side)
    assert d.alpha.shape == d.sigma.shape == (1000,)
    assert (d.alpha.dtype, d.sigma.dtype) == (torch.float64, torch.float64)
    assert (d.alpha.diff() < 0).all()
    assert (d.sigma.diff() > 0).all()
    for t in (0, 500, 999):
        with torch.no_grad():
            seen = d(b.x_0, t, b.cond)
        assert seen.x_0.shape == seen.eps.shape == b.x_0.shape
        again = d.alpha[t].item() * seen.x_0 + d.sigma[t].item() * seen.eps
        torch.testing.assert_close(again, b.x_0, rtol=EXACT64, atol=EXACT64)


def test_conditions_are_rows_that_differ_and_the_empty_one_is_its_own(family):
    d, texts = family.denoiser, list(family.tiny.texts)
    cond = family.conditions(texts)
    assert all(len(value) == len(texts) and not value.requires_grad for value in cond.values())
    for i, text in enumerate(texts):
        alone = family.conditions([text])
        for name, value in take_rows(cond, slice(i, i + 1)).items():
            torch.testing.assert_close(value, alone[name], rtol=EXACT64, atol=EXACT64)
    both = concat_conditions(cond, family.conditions(texts[-1:]))
    x_t = family.states(1).expand(len(texts) + 1, *d.shape)
    with torch.no_grad():
        eps = d(x_t, 500, both).eps.flatten(1)
    apart = (eps[:, None] - eps[None]).norm(dim=-1)
    assert apart[-1, -2] < EXACT64 * eps.norm(), "the empty condition is not one condition"
    told = torch.tensor([[a == b for a in texts] for b in texts])
    assert ((apart[:-1, :-1] > 1e-9) | told).all(), (
        "two conditions give one prediction: the network ignores its conditioning"
    )
    assert (apart[:-1, :-1][told] < EXACT64 * eps.norm()).all(), "one condition gives two predictions"


def asked(family: Opened) -> tuple[dict[str, Any], Tensor]:
    """What diffusers' pipeline tells its network in the first of 20 steps for one text, and what that answers."""
    heard: list[tuple[dict[str, Any], Tensor]] = []
    network = getattr(family.pipe, family.tiny.part)
    names = ("sample", "timestep") if family.tiny.part == "unet" else ("hidden_states", "timestep")

    def listen(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        heard.append(({**dict(zip(names, args, strict=False)), **kwargs}, output[0]))

    handle = network.register_forward_hook(listen, with_kwargs=True)
    try:
        with torch.no_grad():
            family.tiny.call(family.pipe, family.tiny.texts[0], family.states(1), family.denoiser)
    finally:
        handle.remove()
    return heard[0]


def test_the_network_is_asked_as_diffusers_own_pipeline_asks_it(family):
    """Encodings, pooled texts, sizes and times: of one state, our raw output is the one the pipeline saw."""
    told, raw = asked(family)
    d = family.denoiser
    x_t = family.tiny.unpack(d, told["sample"] if "sample" in told else told["hidden_states"])
    time = float(torch.as_tensor(told["timestep"]).flatten()[0])
    t = family.tiny.index(d, time)
    with torch.no_grad():
        seen = d(x_t[:1], t, family.conditions([family.tiny.texts[0]]))
    x_0, eps = family.tiny.reads(d, x_t[:1], t, family.tiny.unpack(d, raw[:1]))
    assert (seen.eps - eps).norm() < TOLD64 * eps.norm()
    assert (seen.x_0 - x_0).norm() < TOLD64 * x_0.norm()


def test_attributable_parameters_are_those_asked_for(family):
    d, network = family.denoiser, dict(family.denoiser.network.named_parameters())
    trained = [name for name in network if re.match(family.tiny.trained, name)]
    assert list(d.parameters) == trained, "`all` is every parameter that was trained"
    for parameters in (family.tiny.group, "attention", r"\.bias$|\.norm_q\."):
        few = family.load(parameters=parameters)
        assert 0 < len(few.parameters) < len(network)
        assert {n for n, p in few.network.named_parameters() if p.requires_grad} == set(few.parameters)


def test_few_parameters_cost_a_pass_per_sample(family, monkeypatch, caplog):
    d, probe, replayed = family.denoiser, Probe("forward_noise", "prediction", (400,)), set()
    by_layer = separable_layers.per_sample_gradients

    def noted(layer, call, g, b, names):
        replayed.update(() if has_rule(layer) else names.values())
        return by_layer(layer, call, g, b, names)

    monkeypatch.setattr(separable_layers, "per_sample_gradients", noted)
    (state,) = forward_noise(d, family.batch(), probe, 0)
    pull_back(d, state, [lambda s, seen: DIRECTIONS["prediction"](d, s, seen, probe)])
    assert len(replayed) == family.tiny.replayed, f"{replayed} are replayed"
    assert "no layer rule" not in caplog.text, "parameters cost a pass through the whole network"


@pytest.mark.parametrize("direction", ["denoising_error", "reconstruction_reward", "caption_reward"])
def test_a_direction_pulled_back_is_the_gradient_of_its_written_out_loss(family, direction, monkeypatch):
    if family.tiny.casts:
        monkeypatch.setattr(Tensor, "float", Tensor.double)
    d, probe, b = family.denoiser, Probe("forward_noise", direction, (400,)), family.batch()
    (state,) = forward_noise(d, b, probe, 0)
    fast = pull_back(d, state, [lambda s, seen: DIRECTIONS[direction](d, s, seen, probe)])[0].dense()
    if d.conditioning == "none" and direction == "caption_reward":
        assert all((g == 0).all() for g in fast.values()), "a model without conditions has no way from one to another"
        return
    for i, one in enumerate(written_out.ones(b)):
        at = written_out.Stand(state.x_t[i : i + 1], state.t, state.noise[i : i + 1])
        slow = written_out.gradient(d, written_out.LOSSES[direction](d, one, at, probe))
        error = (torch.cat([g[i].flatten() for g in fast.values()]) - slow).norm() / slow.norm()
        assert error < EXACT64, f"{direction}: J^T v differs by {error:.1e} from the gradient of the loss"


def test_inversion_goes_up_and_sampling_comes_down_the_same_times(family):
    """Against the formula written out; the step back, by the noise of the step up, ends where that began."""
    d, b = family.denoiser, family.batch()
    probe = Probe("ddim_inversion", "reconstruction_reward", points=6, every=2, guidance=7.5)
    up = list(ddim_inversion(d, b, probe, 0))
    down = list(sampling(d, b, Probe("sampling", "concept_reward", points=6, every=2), 0))
    assert [s.t for s in up] == [s.t for s in down][::-1] == sorted(s.t for s in up)
    for i, one in enumerate(written_out.ones(b)):
        for ours, theirs in zip(up, written_out.ddim_inversion(d, one, probe, 0), strict=True):
            assert (ours.t, (ours.x_t[i] - theirs.x_t[0]).norm() < EXACT64 * theirs.x_t.norm()) == (theirs.t, True)
    with torch.no_grad():
        seen = d(b.x_0, 300, b.cond)
    x_s = ddim_step(d, seen, 300, 320)
    back = ddim_step(d, seen._replace(x_0=(x_s - d.sigma[320].item() * seen.eps) / d.alpha[320].item()), 320, 300)
    torch.testing.assert_close(back, b.x_0, rtol=EXACT64, atol=EXACT64)


def overheard(family: Opened, x_t: Tensor, t: int, cond: Condition) -> Tensor:
    """The raw output of our own network, without what it also learned about the variance."""
    d = family.denoiser
    heard: list[Tensor] = []
    handle = d.network.register_forward_hook(lambda module, args, output: heard.append(output[0]))
    d(x_t, t, cond)
    handle.remove()
    return family.tiny.unpack(d, heard[0])


@pytest.mark.parametrize("t", [40, 500, 980])
def test_a_step_is_that_of_diffusers_own_scheduler(family, t):
    d, x_t = family.denoiser, family.states(2)
    cond = family.conditions(list(family.tiny.texts[:2]))
    with torch.no_grad():
        ours = ddim_step(d, d(x_t, t, cond), t, t - 20)
        raw = overheard(family, x_t, t, cond)
    theirs = family.tiny.their_step(family.pipe, raw, t, x_t)
    error = (ours - theirs).norm() / theirs.norm()
    assert error < TABLE32, f"at t={t} a step differs by {error:.1e}"


def test_samples_of_a_batch_do_not_see_each_other(family):
    assert batch_consistency(family.denoiser, family.tiny.texts) < ROUNDING[torch.float64]


def test_half_precision_predicts_numbers(family):
    d = family.load(precision="bfloat16")
    with torch.no_grad():
        seen = d(family.states(4).bfloat16(), 700, family.conditions(list(family.tiny.texts), d))
    assert seen.eps.dtype == seen.x_0.dtype == torch.bfloat16
    assert torch.isfinite(seen.eps).all()


def test_another_directory_of_the_same_files_is_the_same_model(family):
    assert family.load().identity() == family.denoiser.identity()


def test_offloaded_encoders_come_to_the_device_to_encode_and_leave(family):
    d, texts = copy(family.denoiser), list(family.tiny.texts)
    encoders = getattr(d, "text_encoders", {})
    if not encoders:
        return
    d.offload_encoders()
    with _LivingBytes() as counter:
        cond = d.encode(texts[:2])
    assert counter.most > max(weight_bytes(encoder.model) for encoder in encoders.values()), "it encodes on the host"
    assert counter._current <= sum(value.nbytes for value in cond.values()), "an encoder stays on the device"
    for name, value in family.denoiser.encode(texts[:2]).items():
        assert torch.equal(cond[name], value)
