"""A network divided among devices: every operation on one of them, the features those of the whole network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from concept_trak import UserError
from concept_trak.attribution.features import compute_features, features_naive
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch
from concept_trak.audit.worker import open_model
from concept_trak.config import ModelConfig, WorkerSettings
from concept_trak.models import load_model
from concept_trak.models.pipeline import Pipeline
from tests.models.families import FAMILIES, Tiny, images, seeded
from tests.placed_tensors import place, placed_tensors
from tests.tolerances import EXACT64

METHOD = {
    "none": replace(METHODS["trak"], train=replace(METHODS["trak"].train, times=(500,))),
    "all": replace(METHODS["concept_b"], unit=True, train=replace(METHODS["concept_b"].train, times=(300,))),
}
METHOD["layer"] = replace(METHOD["all"], over="layer", exponent=0.5)
HALVES = ("meta:0", "meta:1")


def batch_of(tiny: Tiny, d) -> Batch:
    x_0 = torch.linspace(-1, 1, 2 * d.shape[0] * d.shape[1] * d.shape[2], dtype=torch.float64).view(2, *d.shape).sin()
    cond = d.encode(list(tiny.texts[:2])) | (d.encode_image(images(d, 2)) if d.takes_image else {})
    return Batch(("0", "1"), cond, cond | d.encode([tiny.texts[-1]] * 2), x_0)


def there(batch: Batch, device: str) -> Batch:
    def conditions(cond):
        return {name: value.to(device) for name, value in cond.items()}

    return replace(batch, cond=conditions(batch.cond), negative=conditions(batch.negative), x_0=batch.x_0.to(device))


def opened(name: str, folder, *devices) -> list:
    """A model of a family on each of some devices."""
    tiny, path = FAMILIES[name], str(folder)
    seeded(tiny.build).save_pretrained(path)
    return [load_model(path, **tiny.ways, precision="float64", device=device) for device in devices]


DIVIDED = [
    ("stable_diffusion_eps", "all", "kronecker"),
    ("flux", "none", "mask"),
    ("flux", "all", "kronecker"),
    ("flux", "layer", "sketch"),
    ("qwen_image", "all", "kronecker"),
    ("lumina2", "layer", "sketch"),
    ("z_image", "all", "kronecker"),
    ("sana", "layer", "sketch"),
    ("pixart_t5_sizes", "all", "kronecker"),
]


@pytest.fixture(scope="module", params=list(dict.fromkeys(name for name, _, _ in DIVIDED)))
def models(request, tmp_path_factory):
    """A whole network, the same one in two halves, and a batch."""
    whole, halves = opened(request.param, tmp_path_factory.mktemp(request.param), "cpu", "cpu")
    with placed_tensors():
        halves.divide(HALVES)
    with pytest.MonkeyPatch.context() as patch:
        if FAMILIES[request.param].casts:  # to float32 inside; here everything is float64
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield whole, halves, batch_of(FAMILIES[request.param], whole)


def blocks(network: nn.Module) -> list[nn.Module]:
    lists = (nn.ModuleList, nn.ModuleDict)
    return [block for m in network.children() for block in (m.children() if isinstance(m, lists) else [m])]


def test_both_devices_have_weights_and_the_state_is_on_the_first(models):
    whole, halves, _ = models
    numbers = dict.fromkeys(map(torch.device, HALVES), 0)
    for p in halves.network.parameters():
        numbers[p.device] += p.numel()
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks(halves.network))
    own = sum(p.numel() for p in halves.network.parameters(recurse=False))
    assert abs(numbers.popitem()[1] - numbers.popitem()[1]) <= largest + own
    assert {p.device for p in halves.network.parameters()} == {*map(torch.device, HALVES)}
    assert halves.device == torch.device(HALVES[0])
    assert list(halves.parameters) == list(whole.parameters)


@pytest.mark.parametrize(("models", "norm", "kind"), DIVIDED, indirect=["models"])
def test_features_are_those_of_the_whole_network(models, norm, kind):
    whole, halves, batch = models
    spec, projector = METHOD[norm].train_spec, Projector(kind, 64)
    expected = features_naive(whole, projector, spec, batch, 0)
    with placed_tensors():
        phi = compute_features(halves, projector, spec, there(batch, HALVES[0]), 0).phi
    assert phi.device == next(iter(halves.parameters.values())).device
    torch.testing.assert_close(phi.numbers, expected, rtol=EXACT64, atol=EXACT64 * float(expected.abs().max()))


def test_load_model_divides_among_the_devices_that_it_is_given(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(Pipeline, "divide", lambda self, devices, offload: calls.append((devices, offload)))
    (model,) = opened("flux", tmp_path, HALVES)
    assert (calls, model.device.type) == ([(HALVES, "auto")], "cpu")


def test_tensors_of_two_devices_are_refused():
    """What the test above rests on."""
    with placed_tensors():
        a, b = (place(torch.ones(2), device) for device in HALVES)
        with pytest.raises(RuntimeError, match=r"add.* of tensors on \['meta:0', 'meta:1'\]"):
            a + b
        assert (a.to(b.device) + b).numbers.tolist() == [2, 2]


def test_a_worker_that_sees_fewer_gpus_than_it_was_given_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"cluster\.gpus=2, and this worker sees 1"):
        open_model(ModelConfig(path="/model"), WorkerSettings(gpus=2))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["stable_diffusion_eps", "flux", "sana"])
def test_two_gpus_give_the_features_of_the_cpu(name, tmp_path):
    whole, halves = opened(name, tmp_path, "cpu", ("cuda:0", "cuda:1"))
    assert {p.device.index for p in halves.parameters.values()} == {0, 1}
    batch, spec = batch_of(FAMILIES[name], whole), METHOD["layer"].train_spec
    expected = compute_features(whole, Projector("kronecker", 64), spec, batch, 0).phi
    phi = compute_features(halves, Projector("kronecker", 64), spec, there(batch, "cuda:0"), 0).phi
    torch.testing.assert_close(phi.cpu(), expected, rtol=EXACT64, atol=EXACT64 * float(expected.abs().max()))
