"""A quantized part of a pipeline directory: its weights stay quantized in memory, and have no gradients.

bitsandbytes, torchao   a folder that `save_pretrained` wrote, with `quantization_config` in its config.json
GGUF                    one file in place of the denoising network's weights, set by `model.weights`
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.data.text import one_line
from concept_trak.models.bitsandbytes_weights import bitsandbytes_weights
from concept_trak.models.pipeline_folder import read_json
from concept_trak.models.quantized_linear import QuantizedLinear, QuantizedWeight
from concept_trak.models.torchao_weights import torchao_weights

READERS: Mapping[str, Callable[[dict[str, Tensor], Mapping[str, str]], dict[str, QuantizedWeight]]] = {
    "bitsandbytes": bitsandbytes_weights,
    "torchao": torchao_weights,
}
"""The kinds of `quantization_config` that are read."""
SETTINGS = "quantization_config"


def quantization_of(folder: Path) -> dict[str, Any]:
    """The quantization of a part, {} if it has none."""
    return read_json(folder / "config.json").get(SETTINGS) or {}


def load_quantized(part_class: Any, folder: Path, files: list[Path]) -> nn.Module:
    """A quantized part with all its weights, on the CPU.

    Args:
        part_class: a model class of diffusers or transformers.
        folder: the part's folder.
        files: its safetensors.

    Raises:
        UserError: the quantization is of a kind that is not read, or the weights do not fit the class.
    """
    method = str(quantization_of(folder).get("quant_method"))
    if method not in READERS:
        raise UserError(
            f"{folder} is quantized by {method}, which is not read; expected one of {', '.join(READERS)}, a GGUF file "
            "in model.weights, or a pipeline without quantization"
        )
    state, metadata = _tensors(files)
    try:
        weights = READERS[method](state, metadata)
        model = _empty(part_class, folder)
        _replace_layers(model, weights, state)
        unknown = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
        getattr(model, "tie_weights", lambda: None)()
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be loaded as a quantized {part_class.__name__} ({one_line(error)}); save the pipeline "
            "again with the current diffusers"
        ) from error
    _require_complete(model, unknown, folder)
    return model


def load_gguf(network_class: Any, base: Path, part: str, file: Path, dtype: torch.dtype) -> nn.Module:
    """A denoising network with the weights of a GGUF file, on the CPU.

    Args:
        network_class: its class in diffusers.
        base, part: the pipeline directory and the network's folder in it, for its configuration.
        file: the GGUF file, with diffusers' names or those of the original code.
        dtype: the precision that the network runs in.

    Raises:
        UserError: the package `gguf` is missing, or the file does not fit the network.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.weights={str(file)!r} needs the package gguf: pip install 'concept-trak[quantised]'")
    from diffusers.quantizers.quantization_config import GGUFQuantizationConfig

    try:
        network = network_class.from_single_file(
            str(file), config=str(base), subfolder=part, quantization_config=GGUFQuantizationConfig(dtype),
            torch_dtype=dtype, local_files_only=True,
        )  # fmt: skip
    except (AttributeError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"model.weights={str(file)!r} does not fit the denoising network of {base} ({one_line(error)}); expected a "
            f"GGUF file of a {network_class.__name__}"
        ) from error
    _keep_gguf_weights(network)
    _require_complete(network, [], file)
    return network


def _keep_gguf_weights(network: nn.Module) -> None:
    """Put layers of ours in place of diffusers', and dequantize the tensors that belong to no linear layer."""
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    parameter_class: Any = GGUFParameter

    def dequantized(stored: Mapping[str, Tensor], kind: Any) -> Tensor:
        return dequantize_gguf_tensor(parameter_class(stored["q"], quant_type=kind))

    for name, module in list(network.named_modules()):
        for own, value in list(module.named_parameters(recurse=False)):
            if isinstance(value, GGUFParameter) and not (isinstance(module, nn.Linear) and own == "weight"):
                setattr(module, own, nn.Parameter(dequantize_gguf_tensor(value).detach(), requires_grad=False))
        linear: Any = module
        if isinstance(getattr(module, "weight", None), GGUFParameter):
            stored, shape = {"q": linear.weight.as_tensor().detach()}, (linear.out_features, linear.in_features)
            weight = QuantizedWeight(shape, stored, partial(dequantized, kind=linear.weight.quant_type))
            network.set_submodule(name, QuantizedLinear(weight, None if linear.bias is None else linear.bias.detach()))


def _tensors(files: list[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of some safetensors files, and their metadata."""
    state, metadata = dict[str, Tensor](), dict[str, str]()
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                metadata |= tensors.metadata() or {}
                state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is no whole safetensors file ({one_line(error)}); save the pipeline again"
            ) from error
    return state, metadata


def _empty(part_class: Any, folder: Path) -> nn.Module:
    """The part without memory for its weights. What its class computes, such as tables of positions, it has."""
    settings = {key: value for key, value in read_json(folder / "config.json").items() if key != SETTINGS}
    with init_empty_weights():
        if issubclass(part_class, ModelMixin):
            return getattr(part_class, "from_config")(settings)  # noqa: B009, of ConfigMixin, which it is too
        return part_class(part_class.config_class.from_dict(settings))


def _replace_layers(model: nn.Module, weights: Mapping[str, QuantizedWeight], state: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != weight.shape:
            raise UserError(f"{name} is a quantized weight of {weight.shape}, and the network has {layer} there")
        model.set_submodule(name, QuantizedLinear(weight, state.pop(f"{name}.bias", None)))


def _require_complete(model: nn.Module, unknown: list[str], place: Path) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if missing := [name for name, value in tensors if value.is_meta]:
        raise UserError(f"{place} lacks {len(missing)} weights ({missing[0]}, ...); save the pipeline again")
    if unknown:
        raise UserError(
            f"{place} has {len(unknown)} tensors ({unknown[0]}, ...) that a {type(model).__name__} has no place for; "
            "save the pipeline again"
        )
