"""The pipelines that the benchmark for a GPU runs: random weights in the shapes of published models, or tiny ones.

A large network is drawn on its device and in bfloat16, a module at a time, so no float32 copy of it ever exists: Flux's
12 billion parameters take 24 GB there. It is saved from there in files of up to 10 GB, one after the other, and freed
before the saved pipeline is opened as anyone's would be. A large pipeline has the published VAE, and text encoders with
the published widths and lengths, but one or two layers.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch
from concept_trak.models import small
from tests.benchmarks import work
from tests.models.tiny import clip, letters, sdxl
from tests.models.tiny_flows import flux

# The UNets of Stable Diffusion 1.x and XL, and Flux.1 dev, whose other settings are diffusers' own defaults.
SD = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
FLUX = {"guidance_embeds": True}
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "scaling_factor": 0.2, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The layers of attention that a LoRA of Flux has by default in the training scripts of diffusers."""


@dataclass(frozen=True)
class Size:
    """A pipeline of random weights, and what is measured of it.

    Attributes:
        parts: the pipeline; its network is tiny, or None in a large one.
        network: the large network, in place of the tiny one.
        rank: of the LoRA whose matrices are attributed, on a frozen base; 0 is none.
        batch: the first batch that is tried.
        resolution: the side of the images in pixels; 0 is the model's own.
        compared: the side of the images whose scores are compared with float32.
    """

    parts: Callable[[], Any]
    network: Callable[[], nn.Module] | None = None
    rank: int = 0
    batch: int = 32
    resolution: int = 0
    compared: int = 0


def _unet(settings: dict[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**settings)


def _flux() -> nn.Module:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    return FluxTransformer2DModel(**FLUX)


def _sd_parts() -> Any:
    from transformers import CLIPTextModel

    pipe, words = work.tiny(), small.tokenizer(length=77)
    pipe.register_modules(text_encoder=clip(CLIPTextModel, words, 768, 768), tokenizer=words, vae=_vae(4))
    return pipe


def _sdxl_parts() -> Any:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    pipe, words = sdxl(zeros=True), small.tokenizer(length=77)
    texts = {"text_encoder": clip(CLIPTextModel, words, 768, 768), "tokenizer": words, "tokenizer_2": words}
    pipe.register_modules(text_encoder_2=clip(CLIPTextModelWithProjection, words, 1280, 1280), vae=_vae(4), **texts)
    return pipe


def _flux_parts() -> Any:
    from transformers import CLIPTextModel

    pipe, words = flux(guidance=True), small.tokenizer(length=77)
    t5, tokens = letters(4096, 512)
    texts = {"text_encoder": clip(CLIPTextModel, words, 768, 768), "tokenizer": words, "tokenizer_2": tokens}
    pipe.register_modules(text_encoder_2=t5, vae=_vae(16, shift_factor=0.1), **texts)
    return pipe


def _vae(channels: int, **more: Any) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(latent_channels=channels, **VAE, **more)


SIZES = {
    "sd": Size(_sd_parts, lambda: _unet(SD)),
    "sdxl": Size(_sdxl_parts, lambda: _unet(SDXL), batch=8),
    "flux": Size(_flux_parts, _flux, rank=16, batch=4, compared=256),
    "tiny": Size(work.tiny),
    "tiny-sdxl": Size(lambda: sdxl(zeros=True)),
    "tiny-flux": Size(lambda: flux(guidance=True), rank=8, resolution=16, compared=16),
}


def save(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Save the pipeline and its LoRA. Returns the settings of `load_model`; a seed draws the weights."""
    size, kind = SIZES[asked.size], getattr(torch, asked.precision)
    torch.manual_seed(0)
    pipe = size.parts()
    part = "transformer" if hasattr(pipe, "transformer") else "unet"
    if size.network:
        pipe.to(dtype=kind)
        with torch.device(asked.device), _drawn_in(kind):
            pipe.register_modules(**{part: size.network()})
    pipe.save_pretrained(folder / "model")
    options: dict[str, Any] = {"path": str(folder / "model"), "parameters": work.LAYERS, "device": asked.device,
                               "resolution": size.resolution}  # fmt: skip
    if not size.rank:
        return options
    save_file(_lora(getattr(pipe, part), part, size.rank), folder / "lora.safetensors", {"format": "pt"})
    return {**options, "parameters": "lora", "lora": str(folder / "lora.safetensors")}


@contextmanager
def _drawn_in(kind: torch.dtype) -> Iterator[None]:
    """New weights are drawn in this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _lora(network: nn.Module, part: str, rank: int) -> dict[str, torch.Tensor]:
    """A LoRA of the attention, as diffusers saves it, none of whose matrices is 0."""
    pairs: dict[str, torch.Tensor] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(TARGETS):
            down, up = (rank, layer.in_features), (layer.out_features, rank)
            pairs[f"{part}.{name}.lora_A.weight"] = normal(down, name, "A").float() / layer.in_features**0.5
            pairs[f"{part}.{name}.lora_B.weight"] = normal(up, name, "B").float() / rank
    return pairs


def random_batch(model: Denoiser, count: int) -> Batch:
    """`count` random latents, with random encodings of the shapes that the model's own have."""
    ids = tuple(f"s{i}" for i in range(count))
    shapes = {part: (value.shape[1:], value.dtype) for part, value in model.encode(["a"]).items()}

    def draw(shape: tuple[int, ...], name: str) -> torch.Tensor:
        return torch.stack([normal(shape, one, name) for one in ids]).to(model.device)

    def condition(name: str) -> dict[str, torch.Tensor]:
        return {part: draw(shape, f"{name}-{part}").to(kind) for part, (shape, kind) in shapes.items()}

    return Batch(ids, condition("caption"), condition("empty"), draw(model.shape, "x_0"))
