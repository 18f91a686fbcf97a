"""Text encoders and VAE on the device only while they encode: counted bytes, the same numbers, and the way back.

On a CPU the copies are made as well, so that tensors which exist at a time can be counted without a GPU.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from concept_trak import UserError
from concept_trak.attribution import batch_size
from concept_trak.attribution.features import compute_features, training_batch
from concept_trak.attribution.method import METHODS, FeatureSpec
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.repeated_texts import RepeatedTexts
from concept_trak.attribution.state import Batch, Probe
from concept_trak.models import load_model
from concept_trak.models.offload import leaves_device, weight_bytes
from tests.models.tiny_flows import flux

TEXTS = ["a red square", "", "a blue circle"]
STATE = FeatureSpec(Probe("forward_noise", "denoising_error", times=(500,)), unit=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One model as it is, and the same model with offloaded encoders."""
    folder = str(tmp_path_factory.mktemp("model"))
    flux(guidance=True).save_pretrained(folder)
    resident, offloaded = (load_model(folder, parameters=r"\.weight$", resolution=16) for _ in range(2))
    offloaded.offload_encoders()
    return resident, offloaded


def modules(d) -> list[torch.nn.Module]:
    return [encoder.model for encoder in d.text_encoders.values()] + [d.vae.module]


def addresses(d) -> list[int]:
    return [tensor.data_ptr() for module in modules(d) for tensor in (*module.parameters(), *module.buffers())]


def test_no_number_changes_and_the_weights_are_back_in_their_places(pair):
    resident, offloaded = pair
    before, pixels = addresses(offloaded), torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    for ours, plain in zip(offloaded.encode(TEXTS).values(), resident.encode(TEXTS).values(), strict=True):
        assert torch.equal(ours, plain)
    x_0 = resident.to_latent(pixels)
    assert torch.equal(offloaded.to_latent(pixels), x_0)
    assert torch.equal(offloaded.to_pixels(x_0), resident.to_pixels(x_0))
    assert addresses(offloaded) == before


def encoded(d) -> Batch:
    cond, negative = d.encode(["a red square"] * 2), d.encode([""] * 2)
    return Batch(ids=("0", "1"), cond=cond, negative=negative, x_0=d.to_latent(torch.zeros(2, 3, 16, 16)))


def test_encoders_take_no_memory_while_gradients_are_computed(pair):
    """The counter sees tensors that are created in its context, so weights on the host do not count, and copies do."""
    _, d = pair

    def gradients(batch: Batch) -> None:
        compute_features(d, Projector("sketch", 64), STATE, batch, 0)

    gradients(encoded(d))  # what libraries make once
    with batch_size._LivingBytes() as encoding:
        batch = encoded(d)
    with batch_size._LivingBytes() as pulling:
        gradients(batch)
    with batch_size._LivingBytes() as both:
        gradients(encoded(d))
    kept = sum(t.nbytes for t in (*batch.cond.values(), *batch.negative.values(), batch.x_0))
    assert encoding.most > sum(map(weight_bytes, modules(d))) / len(modules(d)), "no encoder came to the device"
    assert encoding._current <= kept, "something stayed on the device after encoding"
    assert both.most <= max(encoding.most, kept + pulling.most), "the peak is not the larger of the two"


class CopiedBytes(TorchDispatchMode):
    """Bytes of the copies that are made of some weights."""

    def __init__(self, weights: list[int]) -> None:
        super().__init__()
        self.total, self._weights = 0, set(weights)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self._weights:
            self.total += result.nbytes
        return result


def test_encoders_come_to_the_device_once_for_a_batch_whose_negatives_were_encoded(pair):
    """Without them twice: for the captions and for the negatives; the negatives are equal to the last bit."""
    _, d = pair
    *encoders, vae = map(weight_bytes, modules(d))
    texts, method, negatives = RepeatedTexts(d), METHODS["caption_trak"], []

    def copied(captions: list[str]) -> int:
        with CopiedBytes(addresses(d)) as copies:
            x_0, cond = d.to_latent(torch.zeros(len(captions), 3, 16, 16)), d.encode(captions)
            batch = training_batch(d, method, captions, captions, x_0, cond, 0, texts)
        negatives.append(batch.negative)
        return copies.total

    assert copied(TEXTS[::2]) == 2 * sum(encoders) + vae
    assert copied(TEXTS[::-2]) == sum(encoders) + vae
    assert copied(TEXTS) == 2 * sum(encoders) + vae, "three samples have other negatives than two"
    for cond in negatives:
        for name, value in d.encode([""] * len(cond["text"])).items():
            assert torch.equal(cond[name], value)


def test_only_the_encoder_in_use_is_on_the_device(pair):
    _, d = pair
    for module, on_device in [(e.model, e.on_device) for e in d.text_encoders.values()] + [
        (d.vae.module, d.vae.on_device)
    ]:
        with batch_size._LivingBytes() as counter:
            with on_device(), on_device():
                assert counter._current == weight_bytes(module)
            assert counter._current == 0


def test_an_error_in_an_encoder_brings_its_weights_back(pair, monkeypatch):
    _, d = pair
    before = addresses(d)

    def forward(*args, **kwargs):
        raise RuntimeError("the device is full")

    for encoder in d.text_encoders.values():
        monkeypatch.setattr(encoder.model, "forward", forward)
    with pytest.raises(RuntimeError, match="full"):
        d.encode(TEXTS)
    assert addresses(d) == before


def test_auto_offloads_what_takes_more_than_a_fifth_of_a_gpu(monkeypatch):
    module, gpu = torch.nn.Linear(100, 10, bias=False), torch.device("cuda")

    class Properties:
        total_memory = 5 * 4000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert not leaves_device("auto", [module], gpu)
    assert leaves_device("auto", [module, torch.nn.Linear(1, 1)], gpu)
    assert leaves_device("always", [], gpu)
    assert not leaves_device("never", [module, module], gpu)
    with pytest.raises(UserError, match=r"model.offload='yes'; expected one of: auto, always, never"):
        leaves_device("yes", [module], gpu)
    assert not leaves_device("always", [module], torch.device("cpu")), "there is no other memory to leave it for"


@pytest.mark.gpu
def test_on_a_gpu_only_the_network_stays(pair):
    resident, _ = pair
    device, options = torch.device("cuda"), {"parameters": r"\.weight$", "resolution": 16, "device": "cuda"}
    before = torch.cuda.memory_allocated()
    d = load_model(str(resident.path), **options, offload="always")
    loaded = torch.cuda.memory_allocated() - before
    assert loaded < 1.1 * weight_bytes(d.network) + 2**20, "an encoder is on the device before it encodes"
    cond = d.encode(TEXTS)
    everywhere = load_model(str(resident.path), **options, offload="never").encode(TEXTS)
    for name, value in cond.items():
        assert value.device.type == device.type
        assert torch.equal(value, everywhere[name])
    assert {p.device.type for module in modules(d) for p in module.parameters()} == {"cpu"}
