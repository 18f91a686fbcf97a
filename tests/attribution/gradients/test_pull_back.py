"""The layer rules against one plain backward per sample."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.normalization import FP32LayerNorm, RMSNorm
from torch import Tensor

from concept_trak.attribution.denoiser import attributable
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.gradients.accumulate import gradient_norms, norm_group
from concept_trak.attribution.gradients.factors import DenseGradient, FactoredGradient
from concept_trak.attribution.gradients.layer_rules import has_rule, is_separable, per_sample_gradients, record_call
from concept_trak.attribution.gradients.pull_back import pull_back, pull_back_naive
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.state import Direction, Probe
from concept_trak.attribution.trajectory import forward_noise
from tests.tolerances import EXACT64
from tests.toys import Toy, batch


def pulled(denoiser, how, b, rows=slice(None), direction="reconstruction_reward", workspace=None):
    probe = Probe("forward_noise", direction, times=(400,))
    (state,) = forward_noise(denoiser, batch(denoiser, b).rows(rows), probe, seed=0)

    def pointer(s, seen):
        return DIRECTIONS[direction](denoiser, s, seen, probe)

    if how is pull_back_naive:
        gradients, seen, at = pull_back_naive(denoiser, state, pointer)
        return gradients, seen, at.v
    (found,) = pull_back(denoiser, state, [pointer], workspace)
    return found.dense(), found.prediction, found.direction.v


@pytest.mark.parametrize("direction", ["reconstruction_reward", "denoising_error", "caption_reward"])
@pytest.mark.parametrize("parameters", ["all", r"norm|gain|shift", "wide", "label"])
def test_batched_equals_one_at_a_time(parameters, direction):
    denoiser = Toy(parameters)
    fast, seen, v = pulled(denoiser, pull_back, 4, direction=direction)
    slow, seen_slow, v_slow = pulled(denoiser, pull_back_naive, 4, direction=direction)
    assert list(fast) == list(slow) == list(denoiser.parameters)
    torch.testing.assert_close(v, v_slow, rtol=EXACT64, atol=1e-15)
    torch.testing.assert_close(seen.eps, seen_slow.eps, rtol=EXACT64, atol=1e-13)
    for name in fast:
        error = (fast[name] - slow[name]).norm() / slow[name].norm().clamp_min(1e-300)
        assert error < EXACT64, f"the layer rule that covers {name} is wrong by {error:.1e}"


def test_a_gradient_does_not_depend_on_its_batch_mates():
    denoiser = Toy()
    together, _, _ = pulled(denoiser, pull_back, 5)
    alone, _, _ = pulled(denoiser, pull_back, 5, rows=slice(3, 4))
    for name in together:
        torch.testing.assert_close(together[name][3:4], alone[name], rtol=EXACT64, atol=1e-14)


def test_parameters_that_cost_a_pass_per_sample_are_reported_once(caplog, monkeypatch):
    plain = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "silu", lambda h: plain(h, inplace=True))
    denoiser, workspace = Toy("wide"), Workspace()
    for _ in range(2):
        pulled(denoiser, pull_back, 2, workspace=workspace)
        assert len([r for r in caplog.records if "no layer rule" in r.message]) == 1


def test_the_norm_runs_over_all_parameters_of_one_sample():
    denoiser, probe = Toy(), Probe("forward_noise", "denoising_error", times=(400,))
    (state,) = forward_noise(denoiser, batch(denoiser, 3), probe, seed=0)
    found = pull_back(denoiser, state, [lambda s, seen: DIRECTIONS["denoising_error"](denoiser, s, seen, probe)])[0]
    flat = torch.cat([g.flatten(1) for g in found.dense().values()], 1)
    length, since = gradient_norms(found.gradients, "all")
    assert list(length) == ["all"]
    torch.testing.assert_close(length["all"] * found.scale, flat.norm(dim=1), rtol=EXACT64, atol=0)
    for name, g in replace(found, gradients=since).dense().items():
        torch.testing.assert_close(g, found.dense()[name], rtol=EXACT64, atol=0)


def test_the_norm_of_a_layer_runs_over_its_weight_and_bias():
    denoiser, probe = Toy(), Probe("forward_noise", "denoising_error", times=(400,))
    (state,) = forward_noise(denoiser, batch(denoiser, 3), probe, seed=0)
    found = pull_back(denoiser, state, [lambda s, seen: DIRECTIONS["denoising_error"](denoiser, s, seen, probe)])[0]
    gradients, (length, _) = found.dense(), gradient_norms(found.gradients, "layer")
    owned = {name: [n for n in gradients if n.rpartition(".")[0] == name.rpartition(".")[0]] for name in gradients}
    assert max(map(len, owned.values())) > 1, "no layer of this toy has two parameters"
    for name, names in owned.items():
        layer = torch.cat([gradients[n].flatten(1) for n in names], 1)
        torch.testing.assert_close(
            length[norm_group(name, "layer")] * found.scale, layer.norm(dim=1), rtol=EXACT64, atol=1e-15, msg=name
        )


def test_a_layer_that_is_rounding_counts_nothing():
    """Or else a norm of its own would make it as loud as any other."""
    parts = {"a.weight": (3.0, 1.0), "a.bias": (4.0, 0.0), "b.weight": (4e-5, 1.0)}
    pieces = {name: DenseGradient(torch.tensor(values, dtype=torch.float64)[:, None]) for name, values in parts.items()}
    length, _ = gradient_norms(pieces, "layer")
    assert {layer: found.tolist() for layer, found in length.items()} == {"a": [5, 1], "b": [0, 1]}


def test_a_tempered_norm_lies_between_the_layers_own_and_the_whole():
    """|g_l|^p |g|^(1-p) of layers of norms 3 and 4 in a gradient of norm 5, and nothing of a layer that is rounding."""
    parts = {"a.weight": (3.0,), "b.weight": (4.0,), "c.weight": (4e-5,)}
    pieces = {name: DenseGradient(torch.tensor(values, dtype=torch.float64)[:, None]) for name, values in parts.items()}
    length, _ = gradient_norms(pieces, "layer", exponent=0.5)
    expected = {"a": 15**0.5, "b": 20**0.5, "c": 0}
    assert {layer: norm.item() for layer, norm in length.items()} == pytest.approx(expected, rel=EXACT64)


@pytest.mark.parametrize("places", [2, 40])
def test_a_product_answers_as_its_matrix_does(places):
    """Norm, scaled sum and single entries, with the matrix cheaper than the factors (40 places) and dearer (2)."""
    draw = torch.Generator().manual_seed(places)
    g, x = (torch.randn(3, places, n, generator=draw, dtype=torch.float64) for n in (6, 8))
    piece, matrix = FactoredGradient(g, x, (6, 4, 2)), torch.einsum("bpo,bpi->boi", g, x)
    assert piece.norm_is_cheaper_in_factors == (places == 2)
    torch.testing.assert_close(piece.squared_norm(), matrix.square().sum((1, 2)), rtol=EXACT64, atol=0)
    norms, since = gradient_norms({"w": piece}, "all")
    torch.testing.assert_close(norms["all"], matrix.square().sum((1, 2)).sqrt(), rtol=EXACT64, atol=0)
    assert isinstance(since["w"], FactoredGradient if places == 2 else DenseGradient)
    at, factor = torch.tensor([47, 0, 13]), torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    for one in (piece, since["w"]):
        total = torch.ones(3, 6, 4, 2, dtype=torch.float64)
        one.add_to(total, factor)
        expected = 1 + factor[:, None, None] * matrix
        torch.testing.assert_close(total.flatten(1), expected.flatten(1), rtol=EXACT64, atol=1e-12)
        torch.testing.assert_close(one.entries(at), matrix.flatten(1)[:, at], rtol=EXACT64, atol=1e-12)


def test_several_directions_share_one_forward():
    denoiser, forwards = Toy("wide"), []
    probes = [Probe("forward_noise", name, times=(400,)) for name in ("denoising_error", "reconstruction_reward")]
    (state,) = forward_noise(denoiser, batch(denoiser, 3), probes[0], seed=0)
    pointers = [lambda s, seen, p=p: DIRECTIONS[p.direction](denoiser, s, seen, p) for p in probes]
    alone = [pull_back(denoiser, state, [pointer])[0].dense() for pointer in pointers]
    handle = denoiser.network.register_forward_hook(lambda *_: forwards.append(1))
    together = [found.dense() for found in pull_back(denoiser, state, pointers)]
    handle.remove()
    assert len(forwards) == 1
    for one, other in zip(alone, together, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=EXACT64, atol=0)


def test_a_direction_below_the_range_of_float16_is_pulled_back_whole():
    """v is brought near 1 by a power of two before it goes through the network, and the power is put back."""
    denoiser = Toy("wide")
    (state,) = forward_noise(denoiser, batch(denoiser, 3), Probe("forward_noise", "prediction", times=(400,)), 0)
    plain, tiny = (
        pull_back(denoiser, state, [lambda s, seen, f=f: Direction(seen.eps.detach() * f, torch.ones(3))])[0]
        for f in (1.0, 2.0**-40)
    )
    assert (tiny.scale == plain.scale * 2.0**-40).all()
    for name, piece in tiny.gradients.items():
        torch.testing.assert_close(piece.dense(), plain.gradients[name].dense(), rtol=0, atol=0)


def test_parameters_outside_the_pattern_stay_frozen():
    denoiser = Toy("wide")
    assert [n for n, p in denoiser.network.named_parameters() if p.requires_grad] == ["wide.weight", "wide.bias"]
    with pytest.raises(ValueError, match="matches none of the"):
        Toy("no such layer")
    with pytest.raises(ValueError, match="not a regular expression"):
        Toy("(")


def test_other_parameters_of_a_model_already_used_are_pulled_back_together_too(caplog):
    denoiser, workspace = Toy("wide"), Workspace()
    pulled(denoiser, pull_back, 2, workspace=workspace)
    denoiser.parameters = attributable(denoiser.network, r"norm")
    fast, _, _ = pulled(denoiser, pull_back, 2, workspace=workspace)
    slow, _, _ = pulled(denoiser, pull_back_naive, 2)
    assert list(fast) == list(slow) == list(denoiser.parameters)
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=EXACT64, atol=1e-14, msg=f"{name}: kept from before")
    assert "no layer rule" not in caplog.text, (
        "the layers of the parameters before were looked at, and these one by one"
    )


def test_a_layer_whose_output_is_written_over_is_still_exact(monkeypatch):
    """The gradient at what stands there afterwards is not the layer's own: such a layer goes one sample at a time."""
    plain = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "silu", lambda h: plain(h, inplace=True))
    denoiser = Toy("wide")
    fast, _, _ = pulled(denoiser, pull_back, 3)
    slow, _, _ = pulled(denoiser, pull_back_naive, 3)
    for name in fast:
        torch.testing.assert_close(fast[name], slow[name], rtol=EXACT64, atol=1e-15)


def test_a_group_norm_is_split_with_and_without_the_moments_it_found():
    """Several groups, a mean far from 0, samples of two rows each: against autograd through one sample."""
    draw = torch.Generator().manual_seed(4)
    layer = torch.nn.GroupNorm(3, 6).double()
    x, g = (torch.randn(8, 6, 5, generator=draw, dtype=torch.float64) + shift for shift in (30, 0))
    y = layer(x)
    call = record_call(layer, (x,), {}, y)
    assert call.moments is not None, "this version of PyTorch keeps the moments elsewhere: they are computed again"
    for one in (call, replace(call, moments=None)):
        found = per_sample_gradients(layer, one, g, 4, ["weight", "bias"])
        for i in range(4):
            rows = slice(2 * i, 2 * i + 2)
            exact = torch.autograd.grad(layer(x[rows]), [layer.weight, layer.bias], g[rows])
            for name, expected in zip(("weight", "bias"), exact, strict=True):
                torch.testing.assert_close(found[name].dense()[i], expected, rtol=EXACT64, atol=1e-11)


NORMS = {
    "torch": lambda: torch.nn.RMSNorm(6, eps=1e-3),
    "torch, two dimensions, its own eps": lambda: torch.nn.RMSNorm((5, 6)),
    "diffusers": lambda: RMSNorm(6, eps=1e-3),
    "diffusers, with a shift": lambda: RMSNorm(6, eps=1e-3, bias=True),
    "layer norm": lambda: torch.nn.LayerNorm(6),
    "diffusers, layer norm": lambda: FP32LayerNorm(6, eps=1e-3),
}


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_split_by_sample(kind, by_keyword, monkeypatch):
    """Samples of two rows each, called by place and by keyword: against autograd through one sample."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # as the last one computes whatever the precision
    draw = torch.Generator().manual_seed(4)
    layer = NORMS[kind]().double()
    x, g = (torch.randn(8, 5, 6, generator=draw, dtype=torch.float64) + shift for shift in (1, 0))
    names = [name for name, _ in layer.named_parameters()]
    args, kwargs = ((), {"input": x}) if by_keyword else ((x,), {})
    call = record_call(layer, args, kwargs, layer(x))
    assert has_rule(layer)
    assert is_separable(layer, call, 4)
    found = per_sample_gradients(layer, call, g, 4, names)
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)
        exact = torch.autograd.grad(layer(x[rows]), list(layer.parameters()), g[rows])
        for name, expected in zip(names, exact, strict=True):
            torch.testing.assert_close(found[name].dense()[i], expected, rtol=EXACT64, atol=1e-12)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_a_convolution_into_patches_is_split_by_sample(patch):
    """Of clips [n, 3, 4, 5, 6], of which patches leave the end out; samples of two rows: against autograd."""
    draw = torch.Generator().manual_seed(4)
    layer = torch.nn.Conv3d(3, 7, patch, stride=patch).double()
    x = torch.randn(8, 3, 4, 5, 6, generator=draw, dtype=torch.float64)
    y = layer(x)
    g = torch.randn(y.shape, generator=draw, dtype=torch.float64)
    call = record_call(layer, (x,), {}, y)
    assert has_rule(layer)
    assert is_separable(layer, call, 4)
    split = per_sample_gradients(layer, call, g, 4, ["weight", "bias"])
    for i in range(4):
        rows = slice(2 * i, 2 * i + 2)
        exact = torch.autograd.grad(layer(x[rows]), [layer.weight, layer.bias], g[rows])
        for name, expected in zip(("weight", "bias"), exact, strict=True):
            torch.testing.assert_close(split[name].dense()[i], expected, rtol=EXACT64, atol=1e-12)


@pytest.mark.parametrize("own", [{"stride": 1}, {"padding": 1}, {"dilation": 2}, {"groups": 3}, {"padding": "valid"},
                                 {"padding_mode": "circular", "padding": 1}])  # fmt: skip
def test_other_convolutions_of_clips_are_replayed(own):
    assert not has_rule(torch.nn.Conv3d(3, 6, 2, **{"stride": 2} | own))
