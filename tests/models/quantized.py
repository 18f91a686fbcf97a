"""Quantized folders as `save_pretrained` writes them, with the weights that they stand for.

The functions are written out from the formats' definitions. test_quantized_weights.py compares the same formats with
what the packages themselves wrote.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Quantized = tuple[dict[str, Tensor], dict[str, str], Tensor]
"""The tensors and the metadata of a layer, by the layer's own names, and its weight again."""
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250730, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)  # fmt: skip
BLOCK = 64


def nearest(values: Tensor, code: Tensor) -> Tensor:
    return (values[..., None] - code).abs().argmin(-1)


def nf4(w: Tensor) -> Quantized:
    """bitsandbytes' 4 bits, whose scales are quantized again."""
    flat = torch.nn.functional.pad(w.flatten(), (0, -w.numel() % BLOCK)).view(-1, BLOCK)
    scales, code, mean = flat.abs().amax(1).clamp_min(1e-30), torch.linspace(-1, 1, 256), 0.125
    ranges = torch.stack([(chunk - mean).abs().amax() for chunk in scales.split(256)])
    each = ranges.repeat_interleave(256)[: len(scales)]
    q_scales = nearest((scales - mean) / each, code)
    scales = code[q_scales] * each + mean
    q = nearest((flat / scales[:, None]), NF4)
    weight = (NF4[q] * scales[:, None]).flatten()[: w.numel()].view(w.shape)
    used = q.flatten()[: w.numel()]
    settings = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(w.shape),
                "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": mean}  # fmt: skip
    stored = {
        "weight": ((used[::2] << 4) | used[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": q_scales.to(torch.uint8),
        "weight.quant_map": NF4.clone(),
        "weight.nested_absmax": ranges,
        "weight.nested_quant_map": code,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8),
    }
    return stored, {}, weight


def int8(w: Tensor) -> Quantized:
    """bitsandbytes' 8 bits."""
    scale = w.abs().amax(1)
    q = (w * (127 / scale[:, None])).round().to(torch.int8)
    stored = {"weight": q, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, {}, q * scale[:, None] * 7.874015718698502e-3


def torchao_int8(w: Tensor) -> Quantized:
    return _torchao(w, "Int8Tensor", w.shape[1], 126)  # room for a zero of 1


def torchao_int4(w: Tensor) -> Quantized:
    """4 bits in whole bytes, by groups of four numbers."""
    return _torchao(w, "IntxUnpackedToInt8Tensor", 4, 6)


def _torchao(w: Tensor, kind: str, group: int, most: int) -> Quantized:
    groups = w.view(len(w), -1, group)
    scale = groups.abs().amax(2) / most
    q = (groups / scale[..., None]).round().to(torch.int8)
    zero = torch.ones_like(scale, dtype=torch.int8)
    names = ["qdata", "scale", "zero_point"]
    data = {"block_size": [1, group], "dtype": {"_type": "torch.dtype", "_data": "float32"}, "act_quant_kwargs": None}
    entry = {"_type": kind, "_data": data, "_tensor_data_names": names}
    stored = {"_weight_qdata": (q + 1).view(w.shape), "_weight_scale": scale, "_weight_zero_point": zero}
    return stored, {"weight": json.dumps(entry)}, (q * scale[..., None]).view(w.shape)


METHODS: Mapping[str, tuple[Callable[[Tensor], Quantized], str]] = {
    "nf4": (nf4, "bitsandbytes"),
    "int8": (int8, "bitsandbytes"),
    "torchao_int8": (torchao_int8, "torchao"),
    "torchao_int4": (torchao_int4, "torchao"),
}


def weights_of(part: Path) -> Path:
    (file,) = part.glob("*.safetensors")
    return file


def write_quantized(base: Path, part: str, layers: list[str], method: str, quantized: Path, plain: Path) -> None:
    """Two copies of a pipeline: with these layers of a part quantized, and with what they are then, unquantized."""
    quantize, package = METHODS[method]
    shutil.copytree(base, quantized)
    shutil.copytree(base, plain)
    state = load_file(weights_of(base / part))
    after, metadata = dict(state), {name: json.dumps({"_type": "Tensor"}) for name in state}
    for layer in layers:
        w = state.pop(f"{layer}.weight")
        stored, own, weight = quantize(w)
        state |= {f"{layer}.{name}": value for name, value in stored.items()}
        metadata |= {f"{layer}.{name}": value for name, value in own.items()}
        after[f"{layer}.weight"] = weight
    save_file(after, weights_of(plain / part), {"format": "pt"})
    kinds = metadata | {"tensor_names": json.dumps(list(metadata))} if package == "torchao" else {}
    save_file(state, weights_of(quantized / part), {"format": "pt", **kinds})
    file = quantized / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": package}}))
