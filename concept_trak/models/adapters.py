"""What people keep beside a base model: a full fine-tune, a LoRA, textual-inversion embeddings. Safetensors only.

A LoRA stays a pair of matrices beside each weight, W + (alpha / r) B A (Hu et al. 2022), so that its own gradients can
be asked for. It is read as diffusers saves it (also kohya's names, where diffusers knows them), or as peft does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from concept_trak.models.text_encoder import TextEncoder, Vocabulary, tokenizer_of, with_embedding
from concept_trak.store.identity import file_digest

NAME = "lora"
"""Of the adapter, in its parameters' names, whatever format it was read from."""
BY_ENCODER = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Keys of an embedding for two encoders, as Stable Diffusion XL's trainers write them."""


@dataclass(frozen=True)
class Adapters:
    """Paths; empty is nothing.

    weights: a fine-tuned denoising network in place of the base's: a folder as `save_pretrained` writes it, or a file.
    lora: a LoRA's file, or its folder.
    embeddings: files of textual inversions; texts may then use their tokens.
    """

    weights: str = ""
    lora: str = ""
    embeddings: tuple[str, ...] = ()

    def digests(self, part: str) -> dict[str, str]:
        """sha256 of every file, by what it is to the model: its part of an identity."""
        found = {f"{part}/{f.name}": f for f in _files(Path(self.weights))} if self.weights else {}
        found |= {f"lora/{f.name}": f for f in _adapter(Path(self.lora))} if self.lora else {}
        found |= {f"embeddings/{Path(name).name}": Path(name) for name in self.embeddings}
        return {name: file_digest(file) for name, file in found.items()}


def load_fine_tune(network: nn.Module, weights: Path) -> None:
    """A fine-tune's weights in place of the base's.

    Raises:
        ValueError: they are missing, no safetensors, or of another network.
    """
    files = [file for file in _files(weights) if file.suffix == ".safetensors"]
    if not files:
        raise ValueError(
            f"model.weights={str(weights)!r} holds no .safetensors; expected a fine-tuned network's folder"
        )
    state = {name: value for file in files for name, value in read_tensors(file, "model.weights").items()}
    with _fitting(f"model.weights={str(weights)!r}", "the denoising network"):
        network.load_state_dict(state)


def add_lora(network: nn.Module, readers: Mapping[str, TextEncoder], lora: Path, pipeline: str, part: str) -> None:
    """A LoRA beside the weights of the network, and of the text encoders where it has some of theirs.

    Raises:
        ValueError: it cannot be read, or not all of its matrices have a place in this model.
    """
    said, state = f"model.lora={str(lora)!r}", read_tensors(_adapter(lora)[0], "model.lora")
    parts = {part: network, **{name: reader.model for name, reader in readers.items()}}
    peft = (lora / "adapter_config.json").is_file()
    with _fitting(said, type(network).__name__ if peft else pipeline):
        _as_peft(network, lora, state) if peft else _as_diffusers(parts, lora, pipeline, part)
    placed = sum(f".{NAME}." in n and p.ndim > 1 for one in parts.values() for n, p in one.named_parameters())
    given = sum(value.ndim > 1 for value in state.values())
    if placed != given:
        raise ValueError(
            f"{said} has {given} matrices, and {placed} places were found for them in this model; expected a LoRA of "
            f"this base. It names layers such as {next(iter(state))}"
        )
    for one in parts.values():
        one.eval()


def add_embedding(readers: Mapping[str, TextEncoder], embeddings: Path) -> dict[str, TextEncoder]:
    """The readers with a token more, or several where the embedding has several vectors.

    Raises:
        ValueError: the file is no embedding of these encoders.
    """
    state = read_tensors(embeddings, "model.embeddings")
    if set(state) <= set(BY_ENCODER):
        given = {BY_ENCODER[key]: {embeddings.stem: value} for key, value in state.items()}
    else:
        given = {"text_encoder": state}
    if unknown := set(given) ^ {name for name, reader in readers.items() if reader.model.config.model_type != "t5"}:
        raise ValueError(
            f"model.embeddings={str(embeddings)!r} and the model differ in {', '.join(sorted(unknown))}; expected an "
            "embedding for every CLIP encoder: one token's key, or clip_l and clip_g (the token is the file's name)"
        )
    taught = dict(readers)
    for name, one in given.items():
        reader = readers[name]
        with _fitting(f"model.embeddings={str(embeddings)!r}", f"{name} and {tokenizer_of(name)}"):
            Vocabulary().load_textual_inversion(dict(one), tokenizer=reader.tokenizer, text_encoder=reader.model)
        reader.model.requires_grad_(False)
        taught[name] = with_embedding(reader)
    return taught


def _as_peft(network: Any, lora: Path, state: dict[str, Tensor]) -> None:
    config = LoraConfig.from_pretrained(str(lora))
    inject_adapter_in_model(config, network, adapter_name=NAME)
    own = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    set_peft_model_state_dict(network, own, NAME)


def _as_diffusers(parts: Mapping[str, Any], lora: Path, pipeline: str, part: str) -> None:
    kind: Any = getattr(diffusers, pipeline)
    if not hasattr(kind, "lora_state_dict"):
        raise ValueError("diffusers has no LoRA format for it; give a folder that peft saved, with adapter_config.json")
    file = _adapter(lora)[0]
    ways = {"unet_config": parts[part].config} if part == "unet" else {}
    state, *alphas, metadata = kind.lora_state_dict(
        str(file.parent), weight_name=file.name, use_safetensors=True, return_lora_metadata=True, **ways
    )
    more = {"network_alphas": alphas[0] if alphas else None, "metadata": metadata, "adapter_name": NAME}
    for name, model in parts.items():
        if not any(key.startswith(f"{name}.") for key in state):
            continue
        if name == part:
            model.load_lora_adapter(state, prefix=part, **more)
        else:
            kind.load_lora_into_text_encoder(state, text_encoder=model, prefix=name, **more)
            model.requires_grad_(False)


def read_tensors(file: Path, key: str) -> dict[str, Tensor]:
    """What a safetensors file holds.

    Raises:
        ValueError: it is missing, or something else.
    """
    try:
        if file.suffix != ".safetensors":
            raise ValueError("not a .safetensors file: pickled weights can run code and are never read")
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{key}: {file} cannot be read ({error}); expected safetensors") from None


@contextmanager
def _fitting(said: str, what: str) -> Iterator[None]:
    """Whatever a library stumbles over while loading, as one refusal."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{said} does not fit {what} ({error}); expected one that was trained on this base") from error


def _adapter(lora: Path) -> list[Path]:
    """The weights of a LoRA, and peft's configuration where there is one."""
    if not lora.is_dir():
        return [lora]
    found = [lora / name for name in ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")]
    found = [file for file in found if file.is_file()] or sorted(lora.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"model.lora={str(lora)!r} holds {len(found)} .safetensors files; name the one to use")
    return [*found, *(f for f in [lora / "adapter_config.json"] if f.is_file())]


def _files(weights: Path) -> list[Path]:
    """The fine-tune's files; a folder of a whole pipeline is the part with the network."""
    if not weights.exists():
        raise ValueError(
            f"model.weights={str(weights)!r} does not exist; expected a fine-tuned network's folder or file"
        )
    return sorted(f for f in weights.iterdir() if f.is_file()) if weights.is_dir() else [weights]
