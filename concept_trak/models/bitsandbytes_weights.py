"""Weights as bitsandbytes stores them: 8 bits by row (`load_in_8bit`), 4 bits by block (`load_in_4bit`: nf4, fp4).

    8 bits   W = q s / 127                       one scale s of each row                   (Dettmers et al. 2022)
    4 bits   W = code[q] a                       one scale a of each block of numbers      (Dettmers et al. 2023)
             a = code'[q'] a' + mean             if the scales are quantized again (`double_quant`)

The file holds both tables of codes, so bitsandbytes itself, which loads on a GPU only, is not needed. Its 8-bit product
also rounds the inputs of each layer; here the weights alone are rounded.
"""

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.models.quantized_linear import QuantizedWeight

State = dict[str, Tensor]
FOUR_BITS = ".weight.quant_state.bitsandbytes__"
EIGHT_BITS = ".SCB"
NESTED_BLOCK = 256


def bitsandbytes_weights(state: State, metadata: Mapping[str, str]) -> dict[str, QuantizedWeight]:
    """The quantized weights by layer, whose tensors leave `state`.

    Raises:
        UserError: a layer is stored in an order of memory that only one kind of GPU has.
    """
    weights = {key.removesuffix(EIGHT_BITS): _eight_bits(state, key.removesuffix(EIGHT_BITS)) for key in list(state)
               if key.endswith(EIGHT_BITS)}  # fmt: skip
    return weights | {key.partition(FOUR_BITS)[0]: _four_bits(state, key) for key in list(state) if FOUR_BITS in key}


def _eight_bits(state: State, layer: str) -> QuantizedWeight:
    stored = {"q": state.pop(f"{layer}.weight"), "scale": state.pop(layer + EIGHT_BITS)}
    if int(state.pop(f"{layer}.weight_format", torch.tensor(0))):
        raise UserError(f"{layer}.weight_format is not row by row; save the pipeline again with bitsandbytes >= 0.45")
    return QuantizedWeight(_pair(stored["q"].shape), stored, _of_eight_bits)


def _of_eight_bits(stored: Mapping[str, Tensor]) -> Tensor:
    return stored["q"] * stored["scale"].view(-1, 1) * 7.874015718698502e-3  # 1 / 127 as bitsandbytes writes it


def _four_bits(state: State, key: str) -> QuantizedWeight:
    prefix = key.partition("quant_state.")[0]
    settings: dict[str, Any] = json.loads(bytes(state.pop(key).tolist()))
    names = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if "nested_offset" in settings else [])]
    stored = {name: state.pop(prefix + name) for name in names}
    stored["q"] = state.pop(prefix.removesuffix("."))
    shape = _pair(settings["shape"])
    dequantize = partial(
        _of_four_bits,
        shape=shape,
        block=int(settings["blocksize"]),
        dtype=getattr(torch, settings["dtype"]),
        mean=settings.get("nested_offset"),
    )
    return QuantizedWeight(shape, stored, dequantize)


def _of_four_bits(
    stored: Mapping[str, Tensor], shape: tuple[int, int], block: int, dtype: torch.dtype, mean: float | None
) -> Tensor:
    scales, code = stored["absmax"], stored["quant_map"]
    if mean is not None:
        nested = stored["nested_quant_map"][scales.int()]
        scales = nested * stored["nested_absmax"].repeat_interleave(NESTED_BLOCK)[: len(scales)] + mean
    byte = torch.arange(256, device=code.device)
    pairs = torch.stack([code[byte >> 4], code[byte & 15]], 1)  # both numbers of every byte
    values = pairs[stored["q"].reshape(-1).view(torch.uint8).int()].reshape(-1)[: prod(shape)]
    whole = len(values) // block * block
    blocks = values[:whole].view(-1, block) * scales[: whole // block, None]
    rest = values[whole:] * scales[whole // block :][:1]
    return torch.cat([blocks.reshape(-1), rest]).view(shape).to(dtype)


def _pair(shape: Any) -> tuple[int, int]:
    o, i = shape
    return int(o), int(i)
