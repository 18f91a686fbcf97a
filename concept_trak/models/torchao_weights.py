"""Weights as torchao stores them in safetensors: 8 bits, 4 bits in whole bytes, and float8.

    W = (q - z) s,    with a scale s and a zero z of each block of numbers

The metadata of the file holds the kind of each weight, so torchao itself is not needed.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from concept_trak import UserError
from concept_trak.models.quantized_linear import QuantizedWeight

KINDS = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")
READ = {"qdata", "scale", "zero_point"}


def torchao_weights(state: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, QuantizedWeight]:
    """The quantized weights by layer, whose tensors leave `state`.

    Raises:
        UserError: a weight is of another kind, or its layer also rounds its inputs.
    """
    entries = {name: json.loads(metadata[name]) for name in json.loads(metadata.get("tensor_names", "[]"))}
    kinds = {name: entry for name, entry in entries.items() if entry["_type"] != "Tensor"}
    return {name.removesuffix(".weight"): _weight(state, name, entry) for name, entry in kinds.items()}


def _weight(state: dict[str, Tensor], name: str, entry: dict[str, Any]) -> QuantizedWeight:
    layer, settings, stored_names = name.removesuffix(".weight"), entry["_data"], set(entry["_tensor_data_names"])
    rounds_inputs = settings.get("act_quant_kwargs") or settings.get("activation_quantization")
    if entry["_type"] not in KINDS or stored_names - READ or rounds_inputs or name == layer:
        what = "also rounds the inputs of its layer" if rounds_inputs else f"is stored as {entry['_type']}"
        raise UserError(
            f"{name} {what}, which is not read; quantize the pipeline with Int8WeightOnlyConfig, "
            "Float8WeightOnlyConfig or IntxWeightOnlyConfig"
        )
    stored = {key: state.pop(f"{layer}._weight_{key}") for key in stored_names}
    o, i = stored["qdata"].shape
    dequantize = partial(
        _dequantized, block=tuple(settings["block_size"]), dtype=getattr(torch, settings["dtype"]["_data"])
    )
    return QuantizedWeight((o, i), stored, dequantize)


def _dequantized(stored: Mapping[str, Tensor], block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    q, scale, zero = stored["qdata"], stored["scale"], stored.get("zero_point")
    (o, i), (rows, columns) = q.shape, block
    blocks = (o // rows, rows, i // columns, columns)
    own, each = (o // rows, 1, i // columns, 1), torch.float32 if q.is_floating_point() else dtype
    numbers = q.to(each).view(blocks)
    if zero is not None:
        numbers = numbers - zero.view(own).to(each)
    return (numbers * scale.view(own)).view(o, i).to(dtype)
