"""A LoRA and its relatives: small matrices added to each weight, kept separate so that they have their own gradients.

    LoRA   W + s B A                             s = alpha / r, with rsLoRA alpha / sqrt(r)     (Hu et al. 2022)
    DoRA   m (W + s B A) / |W + s B A|           | | of each output, a constant in the gradient (Liu et al. 2024)
    LoHa   W + s (A1 B1) * (A2 B2)               * is elementwise                               (Hyeon-Woo et al. 2022)
    LoKr   W + s kron(C, A B)                                                                   (Yeh et al. 2024)

peft computes all of them. A file is read as diffusers saves it, as peft does, or with the names of kohya's scripts and
of LyCORIS (`lora_unet_...`). Everything else is refused by its name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.models.lycoris import add_lycoris, is_lycoris, require_known_layers
from concept_trak.models.pipeline_folder import read_json

NAME = "lora"
"""The adapter's name within its parameters' names, whatever format it was read from."""
PEFT_CONFIGS = {"LORA": LoraConfig, "LOHA": LoHaConfig, "LOKR": LoKrConfig}
UNSUPPORTED_SETTINGS = (
    "layer_replication", "megatron_config", "modules_to_save", "target_parameters", "trainable_token_indices",
)  # fmt: skip


def add_lora(
    modules: Mapping[str, nn.Module],
    part: str,
    lora: Path,
    state: dict[str, Tensor],
    pipeline: str,
    dtype: torch.dtype,
) -> None:
    """Add an adapter's matrices to the layers of the network, and of the text encoders if it has some for them.

    Args:
        modules: the denoising network and the text encoders, by their part of the directory.
        part: the network's part.
        lora, state: the file or folder, and its tensors.
        pipeline: the pipeline's class in diffusers.
        dtype: the precision of the matrices.

    Raises:
        UserError: its kind is unknown, some of its tensors fit no layer of this model, or it has no effect.
    """
    name, is_peft = f"model.lora={str(lora)!r}", (lora / "adapter_config.json").is_file()
    require_known_layers(state, name)
    with _fitting(name, type(modules[part]).__name__ if is_peft else pipeline):
        if is_peft:
            _add_peft(modules[part], lora, state)
        elif is_lycoris(state):
            add_lycoris(modules, part, state, NAME)
        else:
            _add_diffusers(modules, part, lora_files(lora)[0], pipeline)
    matrices = [p for module in modules.values() for n, p in module.named_parameters() if NAME in n.split(".")]
    _require_all_used(state, len(matrices), name)
    _require_effect(modules, name)
    for p in matrices:
        p.data = p.data.to(dtype)
    for module_part, module in modules.items():
        module.eval()
        if module_part != part:
            module.requires_grad_(False)


def lora_files(lora: Path) -> list[Path]:
    """The weights of an adapter, and peft's configuration if there is one.

    Raises:
        UserError: a folder has no such file, or several.
    """
    if not lora.is_dir():
        return [lora]
    files = [lora / name for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")]
    files = [file for file in files if file.is_file()] or sorted(lora.glob("*.safetensors"))
    if len(files) != 1:
        raise UserError(f"model.lora={str(lora)!r} holds {len(files)} .safetensors files; name the one to use")
    return [*files, *(f for f in [lora / "adapter_config.json"] if f.is_file())]


def _add_peft(network: Any, lora: Path, state: dict[str, Tensor]) -> None:
    settings = read_json(lora / "adapter_config.json")
    kind = str(settings.get("peft_type"))
    if kind not in PEFT_CONFIGS:
        raise UserError(f"its peft_type is {kind}, which is not read; expected {', '.join(PEFT_CONFIGS)}")
    if unsupported := [key for key in UNSUPPORTED_SETTINGS if settings.get(key)]:
        raise UserError(f"adapter_config.json has {', '.join(unsupported)}, which is not read; save it without")
    config = PEFT_CONFIGS[kind].from_pretrained(str(lora))
    inject_adapter_in_model(config, network, adapter_name=NAME)
    own = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    set_peft_model_state_dict(network, own, NAME)


def _add_diffusers(modules: Mapping[str, Any], part: str, file: Path, pipeline: str) -> None:
    pipeline_class: Any = getattr(diffusers, pipeline)
    if not hasattr(pipeline_class, "lora_state_dict"):
        raise UserError("diffusers has no LoRA format for it; give a folder that peft saved, with adapter_config.json")
    options = {"unet_config": modules[part].config} if part == "unet" else {}
    state, *alphas, metadata = pipeline_class.lora_state_dict(
        str(file.parent), weight_name=file.name, use_safetensors=True, return_lora_metadata=True, local_files_only=True,
        **options,
    )  # fmt: skip
    shared = {"network_alphas": alphas[0] if alphas else None, "metadata": metadata, "adapter_name": NAME}
    for name, module in modules.items():
        if not any(key.startswith(f"{name}.") for key in state):
            continue
        if name == part:
            module.load_lora_adapter(state, prefix=part, **shared)
        else:
            pipeline_class.load_lora_into_text_encoder(state, text_encoder=module, prefix=name, **shared)


def _require_all_used(state: Mapping[str, Tensor], used: int, name: str) -> None:
    keys = [key for key in state if not key.endswith("alpha")]
    if used != len(keys):
        raise UserError(
            f"{name} has {len(keys)} matrices, and {used} places were found for them in this model; expected a "
            f"LoRA of this base. It names layers such as {keys[0] if keys else 'none'}"
        )


def _require_effect(modules: Mapping[str, nn.Module], name: str) -> None:
    layers = [layer for module in modules.values() for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    with torch.no_grad():
        if not any(_changes(layer) for layer in layers):
            raise UserError(
                f"{name} changes no weight: the product of its matrices is zero in every layer, as before training; "
                "expected a trained adapter"
            )


def _changes(layer: Any) -> bool:
    if len(getattr(layer, "lora_magnitude_vector", ())):
        return True
    delta = layer.get_delta_weight(NAME)
    if not bool(delta.isfinite().all()):
        raise UserError(
            "model.lora has matrices that are not finite; expected an adapter whose training did not diverge"
        )
    return bool(delta.any())


@contextmanager
def _fitting(name: str, what: str) -> Iterator[None]:
    """Turn any error while an adapter is loaded into one UserError that names the file and the model."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        text = str(error)[:500]
        raise UserError(f"{name} does not fit {what} ({text}); expected one that was trained on this base") from error
