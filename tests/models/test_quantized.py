"""An adapter on a quantized base: its gradients are those of float64 autograd on the dequantized weights."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from concept_trak import UserError
from concept_trak.attribution.batch_size import _LivingBytes
from concept_trak.attribution.direction import DIRECTIONS
from concept_trak.attribution.gradients.pull_back import pull_back, pull_back_naive
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import forward_noise
from concept_trak.models import load_model
from concept_trak.models.quantized_linear import QuantizedLinear, QuantizedWeight
from tests.models.families import FAMILIES, seeded
from tests.models.quantized import METHODS, weights_of, write_quantized
from tests.models.test_adapter_kinds import ALPHA, ATTENTION, CONVOLUTION, KINDS, WORDS, kohya_name, weight_of
from tests.tolerances import EXACT64

PROBE = Probe("forward_noise", "reconstruction_reward", (400,))


@dataclass(frozen=True)
class Bases:
    """A base, its quantized copies by method, and beside each what it is without quantization."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    def quantized(self, method: str) -> Path:
        return self.root / method

    def plain(self, method: str) -> Path:
        return self.root / f"{method}-plain"


def layers_of(file: Path) -> list[str]:
    """The linear layers of a network, by their weights."""
    return [name.removesuffix(".weight") for name, w in load_file(file).items()
            if w.dim() == 2 and name.endswith(".weight")]  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Bases:
    bases = Bases(tmp_path_factory.mktemp("quantized"))
    seeded(FAMILIES["stable_diffusion_eps"].build).save_pretrained(bases.base)
    layers = layers_of(weights_of(bases.base / "unet"))
    for method in METHODS:
        write_quantized(bases.base, "unet", layers, method, bases.quantized(method), bases.plain(method))
    return bases


def write_adapter(base: Path, kind: str, folder: Path) -> Path:
    """An adapter of attention and of a convolution, in kohya's names; or peft's own folder."""
    if kind == "peft":
        return write_peft_adapter(base, folder)
    make = KINDS[kind][0]
    layers = {kohya_name(layer): make(weight_of(base, layer).float()) for layer in (ATTENTION, CONVOLUTION)}
    state = {f"{layer}.{suffix}": value for layer, own in layers.items() for suffix, value in own.items()}
    save_file(state | {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def write_peft_adapter(base: Path, folder: Path) -> Path:
    """rsLoRA with DoRA's magnitude, two ranks and a convolution."""
    config = LoraConfig(r=2, lora_alpha=6, use_rslora=True, use_dora=True, rank_pattern={"attn2.to_q": 3},
                        alpha_pattern={"conv1": 5}, target_modules=["to_q", "conv1"])  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = get_peft_model(UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False), config)
        for name, p in network.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                nn.init.normal_(p, std=0.3)
    network.save_pretrained(folder / "peft")
    return folder / "peft"


def require_exact_gradients(ours, reference) -> None:
    """Per-sample gradients of the adapter's matrices alone, each equal to plain autograd's."""
    x_0 = torch.stack([normal(ours.shape, 0, i, "x") for i in range(2)]).double()
    batch = Batch(("a", "b"), reference.encode(WORDS), reference.encode(["", ""]), x_0)
    (state,) = forward_noise(reference, batch, PROBE, 0)

    def direction(model):
        return lambda s, prediction: DIRECTIONS[PROBE.direction](model, s, prediction, PROBE)

    pulled = pull_back(ours, state, [direction(ours)])[0]
    expected, prediction, _ = pull_back_naive(reference, state, direction(reference))
    assert (pulled.prediction.eps - prediction.eps).norm() < EXACT64 * prediction.eps.norm()
    gradients = pulled.dense()
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        assert (gradients[name] - value).norm() <= EXACT64 * value.norm(), name
        assert value.norm() > 0, name


CASES = [("nf4", kind) for kind in ("lora", "dora", "lokr", "peft")] + [
    (method, "dora") for method in METHODS if method != "nf4"
]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_gradients_of_an_adapter_are_those_of_the_dequantized_weights(bases, tmp_path, method, kind):
    load = partial(load_model, precision="float64", lora=str(write_adapter(bases.base, kind, tmp_path)))
    ours, reference = load(str(bases.quantized(method))), load(str(bases.plain(method)), parameters="lora")
    assert ours.parameters.keys() == reference.parameters.keys(), "of a quantized network `all` is the adapter"
    require_exact_gradients(ours, reference)


def test_a_gguf_file_is_a_quantized_network(bases, tmp_path):
    """By gguf's own writer and quantizer, and what diffusers reads from the file."""
    file, adapter = tmp_path / "unet.gguf", str(write_adapter(bases.base, "dora", tmp_path))
    writer = gguf.GGUFWriter(str(file), "sd1")
    state, kind = load_file(weights_of(bases.base / "unet")), gguf.GGMLQuantizationType.Q8_0
    for name, value in state.items():
        quantizable = value.dim() == 2 and value.shape[1] % 32 == 0
        numbers = gguf.quants.quantize(value.numpy(), kind) if quantizable else value.numpy()
        writer.add_tensor(name, numbers, raw_dtype=kind if quantizable else None)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    seen = {name: dequantize_gguf_tensor(value).float() for name, value in load_gguf_checkpoint(str(file)).items()}
    save_file({name: value.contiguous() for name, value in seen.items()}, tmp_path / "plain.safetensors")
    load = partial(load_model, str(bases.base), parameters="lora", precision="float64", lora=adapter)
    ours = load(weights=str(file))
    assert sum(isinstance(m, QuantizedLinear) for m in ours.network.modules()) > 10
    require_exact_gradients(ours, load(weights=str(tmp_path / "plain.safetensors")))
    assert ours.identity()["unet/unet.gguf"] != load(weights=str(tmp_path / "plain.safetensors")).identity()
    rest = shutil.copytree(bases.base, tmp_path / "rest")
    weights_of(rest / "unet").unlink()
    load_model(str(rest), weights=str(file), lora=adapter)


def test_the_scales_are_not_rounded_to_the_precision_of_the_network(bases, tmp_path):
    adapter = str(write_adapter(bases.base, "lora", tmp_path))
    ours = load_model(str(bases.quantized("nf4")), precision="bfloat16", lora=adapter)
    plain = load_model(str(bases.plain("nf4")), precision="bfloat16")
    layer = "up_blocks.1.resnets.0.time_emb_proj"
    weight = ours.network.get_submodule(layer).weight
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight, plain.network.get_submodule(layer).weight, rtol=0, atol=0)


def test_a_quantized_text_encoder_has_the_encodings_of_its_dequantized_weights(tmp_path):
    seeded(FAMILIES["pixart_t5"].build).save_pretrained(tmp_path / "base")
    names = layers_of(weights_of(tmp_path / "base/text_encoder"))
    layers = [name for name in names if ("SelfAttention" in name and "relative" not in name) or "Dense" in name]
    write_quantized(tmp_path / "base", "text_encoder", layers, "int8", tmp_path / "quantized", tmp_path / "plain")
    ours, reference = (load_model(str(tmp_path / name), precision="float64") for name in ("quantized", "plain"))
    assert any(isinstance(m, QuantizedLinear) for m in ours.text_encoders["text_encoder"].model.modules())
    for name, value in reference.encode(WORDS).items():
        torch.testing.assert_close(ours.encode(WORDS)[name], value, rtol=EXACT64, atol=EXACT64)


def test_no_graph_keeps_a_dequantized_weight():
    """Eight layers need the stored bytes of all and the weight of one at a time."""
    o, count = 64, 8
    stored = {"q": torch.ones(o, o, dtype=torch.int8)}
    weight = QuantizedWeight((o, o), stored, lambda own: own["q"].float())
    layers = nn.Sequential(*[QuantizedLinear(weight, None) for _ in range(count)])
    x = torch.randn(1, o, requires_grad=True)
    with _LivingBytes() as living:
        layers(x).sum().backward()
    assert living.most < 2.5 * 4 * o * o, "a graph that keeps them has eight"
    torch.testing.assert_close(x.grad, torch.full((1, o), float(o) ** count))


def test_every_quantized_byte_is_part_of_the_identity(bases, tmp_path):
    adapter = str(write_adapter(bases.base, "lora", tmp_path))
    write_quantized(bases.base, "unet", [ATTENTION], "int8", tmp_path / "q", tmp_path / "plain")
    before = load_model(str(tmp_path / "q"), lora=adapter).identity()
    file = weights_of(tmp_path / "q/unet")
    state = load_file(file)
    state[f"{ATTENTION}.weight"][0, 0] += 1
    save_file(state, file, {"format": "pt"})
    after = load_model(str(tmp_path / "q"), lora=adapter).identity()
    assert {name for name in after if before[name] != after[name]} == {"unet/diffusion_pytorch_model.safetensors"}


def test_a_quantized_network_without_an_adapter_is_refused_with_the_remedy(bases, tmp_path):
    with pytest.raises(UserError, match=r"is quantized, so its weights have no gradients; set model\.lora"):
        load_model(str(bases.quantized("int8")))
    with pytest.raises(UserError, match=r"would replace the network of .* which is quantized"):
        load_model(str(bases.quantized("int8")), weights=str(bases.base / "unet"))


def test_a_gguf_file_without_its_package_is_refused_with_the_remedy(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gguf: pip install 'concept-trak\[quantised\]'"):
        load_model(str(bases.base), weights=str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("content", [b"GGUF", b"", np.arange(64, dtype=np.uint8).tobytes()])
def test_a_damaged_gguf_file_is_refused(bases, tmp_path, content):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(UserError, match="does not fit the denoising network"):
        load_model(str(bases.base), weights=str(tmp_path / "a.gguf"))


def test_weights_that_do_not_fit_are_refused_by_name(bases, tmp_path):
    write_quantized(bases.base, "unet", [ATTENTION], "torchao_int8", tmp_path / "q", tmp_path / "plain")
    file = weights_of(tmp_path / "q/unet")
    state = load_file(file)
    entry = {"_type": "Int8Tensor", "_tensor_data_names": ["qdata", "scale", "zero_point"],
             "_data": {"block_size": [1, 16], "dtype": {"_data": "float32"}}}  # fmt: skip
    changes = {
        r"lacks 1 weights \(conv_in\.weight": (entry, "conv_in.weight"),
        "is stored as NVFP4Tensor, which is not read; quantize": (entry | {"_type": "NVFP4Tensor"}, ""),
        "also rounds the inputs of its layer": (entry | {"_data": {"act_quant_kwargs": {}, **entry["_data"],
                                                                   "activation_quantization": "x"}}, ""),
        "cannot be loaded as a quantized UNet2DConditionModel": (entry, f"{ATTENTION}._weight_scale"),
    }  # fmt: skip
    for expected, (kind, dropped) in changes.items():
        own = {name: value for name, value in state.items() if name != dropped}
        name = f"{ATTENTION}.weight"
        save_file(own, file, {"format": "pt", "tensor_names": json.dumps([name]), name: json.dumps(kind)})
        with pytest.raises(UserError, match=expected):
            load_model(str(tmp_path / "q"))
