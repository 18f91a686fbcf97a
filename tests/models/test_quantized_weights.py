"""Quantized weights as bitsandbytes 0.50.2 and torchao 0.18 wrote and dequantized them, read without these packages."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from concept_trak.models.quantized_linear import QuantizedLinear
from concept_trak.models.quantized_part import READERS
from tests.models.write_quantized_weights import FILE, SHAPE

FORMATS = {name.rpartition("/")[0]: None for name in load_file(FILE)}


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_is_what_its_package_dequantizes_to_the_last_bit(name):
    package, prefix = name.partition("/")[0], f"{name}/"
    state = {key.removeprefix(prefix): value for key, value in load_file(FILE).items() if key.startswith(prefix)}
    expected = state.pop("dequantized")
    if package == "bitsandbytes":
        state = {f"0.{key}": value for key, value in state.items()}
    with safe_open(FILE, "pt") as file:
        kinds = json.loads((file.metadata() or {}).get(name, "{}"))
    weights = READERS[package](state, kinds)
    assert state == {}, "every tensor is read"
    layer = QuantizedLinear(weights["0"], None).to(expected.dtype)
    assert layer.weight.shape == SHAPE
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=0)
    assert {b.dtype for b in layer.buffers() if b.numel()} == {torch.uint8}, "a cast would round the scales"
