"""Files that change a base model: a full fine-tune, a LoRA and its relatives, textual-inversion embeddings.

Each is safetensors only. Each is used completely or refused: none is accepted without an effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.models.loading import load_part, ready
from concept_trak.models.lora import add_lora, lora_files
from concept_trak.models.original_checkpoint import conversion_command, is_original
from concept_trak.models.pipeline_folder import choose_files, part_files
from concept_trak.models.quantized_linear import is_quantized
from concept_trak.models.quantized_part import load_gguf
from concept_trak.models.text_encoder import TextEncoder
from concept_trak.models.textual_inversion import add_embedding
from concept_trak.store.identity import file_digest

GGUF = ".gguf"


@dataclass(frozen=True)
class Adapters:
    """Paths of local files; an empty path is no adapter.

    Attributes:
        weights: a denoising network in place of the base's: a folder as `save_pretrained` writes it, a file, or a
            GGUF file, which stays quantized and takes a LoRA.
        lora: a file or a folder with a LoRA, DoRA, LoHa or LoKr.
        embeddings: files of textual inversions, whose tokens texts may then use.
    """

    weights: str = ""
    lora: str = ""
    embeddings: tuple[str, ...] = ()

    def digests(self, part: str) -> dict[str, str]:
        """sha256 of every file, by its purpose: these files' share of a model's identity."""
        files = {f"{part}/{f.name}": f for f in fine_tune_files(Path(self.weights), part)} if self.weights else {}
        files |= {f"lora/{f.name}": f for f in lora_files(Path(self.lora))} if self.lora else {}
        files |= {f"embeddings/{Path(name).name}": Path(name) for name in self.embeddings}
        return {name: file_digest(file) for name, file in files.items()}


def add_adapters(
    adapters: Adapters,
    network: nn.Module,
    part: str,
    text_encoders: Mapping[str, TextEncoder],
    pipeline: str,
    dtype: torch.dtype,
) -> Mapping[str, TextEncoder]:
    """Add the embeddings and the LoRA to a network and its text encoders.

    Args:
        network, part: the denoising network, and its part of the directory.
        text_encoders: by their part of the directory.
        pipeline: the pipeline's class in diffusers.
        dtype: the precision of the adapters' matrices.

    Returns:
        The text encoders, with the embeddings' tokens.

    Raises:
        UserError: a file cannot be read, does not fit this model, or has no effect on it.
    """
    for name in adapters.embeddings:
        text_encoders = add_embedding(text_encoders, Path(name), read_tensors(Path(name), "model.embeddings"))
    if adapters.lora:
        lora = Path(adapters.lora)
        state = read_tensors(lora_files(lora)[0], "model.lora")
        modules = {part: network, **{name: encoder.model for name, encoder in text_encoders.items()}}
        add_lora(modules, part, lora, state, pipeline, dtype)
    return text_encoders


def load_network(network_class: Any, path: Path, part: str, dtype: torch.dtype, device: str, adapters: Adapters) -> Any:
    """The denoising network of a pipeline directory, or the fine-tune in its place.

    Args:
        network_class: its class in diffusers.
        path, part: the directory, and the network's folder in it.

    Raises:
        UserError: a file is refused, or would replace a part of a quantized network.
    """
    weights = Path(adapters.weights)
    if weights.suffix == GGUF:
        return ready(load_gguf(network_class, path, part, weights, dtype), str(weights), dtype, device)
    network = load_part(network_class, path, part, dtype, device)
    if adapters.weights and is_quantized(network):
        raise UserError(
            f"model.weights={adapters.weights!r} would replace the network of {path}, which is quantized; set "
            "model.path to the pipeline without quantization"
        )
    if adapters.weights:
        load_fine_tune(network, weights, part)
    return network


def network_files(path: Path, part: str, adapters: Adapters) -> list[str]:
    """The files of the network's folder that are loaded; a GGUF file needs its configuration only."""
    return ["config.json"] if Path(adapters.weights).suffix == GGUF else part_files(path, part).names


def load_fine_tune(network: nn.Module, weights: Path, part: str) -> None:
    """Put a fine-tune's weights in place of the base's.

    Raises:
        UserError: they are missing, are no safetensors, or belong to another network.
    """
    name = f"model.weights={str(weights)!r}"
    files = [file for file in fine_tune_files(weights, part) if file.suffix == ".safetensors"]
    state = {key: value for file in files for key, value in read_tensors(file, "model.weights").items()}
    if is_original(state):
        raise UserError(
            f"{name} is an original checkpoint, which holds a whole pipeline; expected the denoising network alone. "
            f"Convert it, with the base's directory for its configuration: {conversion_command(str(weights), '<base>')}"
        )
    # Old files call the attention's matrices query, key, value and proj_attn.
    getattr(network, "_fix_state_dict_keys_on_load", lambda state: state)(state)
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or unknown or reshaped:
        problems = {
            "tensors are missing": missing,
            "are not known to it": unknown,
            "have another shape": sorted(reshaped),
        }
        listed = "; ".join(f"{len(keys)} {what} ({keys[0]}, ...)" for what, keys in problems.items() if keys)
        raise UserError(
            f"{name} does not fit the denoising network: {listed}; expected one that was trained on this base"
        )
    network.load_state_dict(state)


def fine_tune_files(weights: Path, part: str) -> list[Path]:
    """The files of a fine-tune that are loaded, with its configuration where it has one.

    Raises:
        UserError: there are none, or the folder is a whole pipeline.
    """
    name = f"model.weights={str(weights)!r}"
    if not weights.exists():
        raise UserError(f"{name} does not exist; expected a fine-tuned network's folder or file")
    if (weights / "model_index.json").exists():
        raise UserError(f"{name} is a whole pipeline; set model.path to it, or model.weights to its {part} folder")
    if not weights.is_dir():
        return [weights]
    names = [f.name for f in weights.iterdir() if f.is_file()]
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"{name} holds no .safetensors; expected a fine-tuned network's folder")
    return [weights / name for name in choose_files(part, names, str(weights)).names]


def read_tensors(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        file: its path.
        key: the setting that names the file, for messages.

    Raises:
        UserError: it is missing, is no regular file, or is no safetensors file.
    """
    try:
        if file.suffix != ".safetensors":
            raise UserError("not a .safetensors file: pickled weights can run code and are never read")
        if not file.is_file():
            raise FileNotFoundError("no such regular file")
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{key}: {file} cannot be read ({error}); expected safetensors") from None
