"""Writes quantized_weights.safetensors, by the packages that define the formats.

    pip install bitsandbytes==0.50.2 torchao==0.18.0 && python -m tests.models.write_quantized_weights

Each name is `<format>/<tensor>`; `dequantized` is the package's own, and the metadata are torchao's. bitsandbytes'
4-bit kernel for CPUs with AVX-512 is wrong for rows of 16 or 32 numbers, so rows here are wider than a block.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("quantized_weights.safetensors")
SHAPE = (6, 128)


def four_bits(w: Tensor, kind: str, nested: bool) -> dict[str, Tensor]:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(w.shape[1], w.shape[0], bias=False, quant_type=kind, compress_statistics=nested)
    weight = bnb.nn.Params4bit(w, requires_grad=False, quant_type=kind, compress_statistics=nested)
    layer.weight = weight.to("cpu")
    return {**layer.state_dict(), "dequantized": bnb.functional.dequantize_4bit(layer.weight.data,
            layer.weight.quant_state)}  # fmt: skip


def eight_bits(w: Tensor) -> dict[str, Tensor]:
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(w.shape[1], w.shape[0], bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(w, requires_grad=False, has_fp16_weights=False).to("cpu")
    state = layer.state_dict()
    return {**state, "dequantized": bnb.functional.int8_vectorwise_dequant(state["weight"], state["SCB"])}


def torchao_kinds(w: Tensor) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    configs = {
        "int8": Int8WeightOnlyConfig(version=2),
        "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
        "float8": Float8WeightOnlyConfig(),
    }
    results = {}
    for name, config in configs.items():
        network = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype))
        network[0].weight = nn.Parameter(w.clone(), requires_grad=False)
        quantize_(network, config)
        state, metadata = flatten_tensor_state_dict(network.state_dict())
        results[name] = {**state, "dequantized": network[0].weight.dequantize()}, metadata
    return results


def main() -> None:
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    tensors, metadata = dict[str, Tensor](), dict[str, str]()
    own = {
        "bitsandbytes/nf4": four_bits(w, "nf4", nested=True),
        "bitsandbytes/fp4": four_bits(w, "fp4", nested=False),
        "bitsandbytes/nf4_bfloat16": four_bits(w.bfloat16(), "nf4", nested=True),
        "bitsandbytes/int8": eight_bits(w),
    }
    for dtype in (torch.float32, torch.bfloat16):
        for name, (state, kinds) in torchao_kinds(w.to(dtype)).items():
            own[f"torchao/{name}_{str(dtype).removeprefix('torch.')}"] = state
            metadata[f"torchao/{name}_{str(dtype).removeprefix('torch.')}"] = json.dumps(kinds)
    for name, state in own.items():
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in state.items()}
    save_file(tensors, FILE, metadata)


if __name__ == "__main__":
    main()
