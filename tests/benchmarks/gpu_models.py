"""The networks that the benchmark for a GPU runs: random weights in the shapes of published models, or tiny ones."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch
from concept_trak.models import load_model
from tests.benchmarks import work
from tests.models.tiny import sdxl

# The UNets of Stable Diffusion 1.x and XL, whose other settings are diffusers' own defaults.
SD = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
TOKENS = 77


@dataclass(frozen=True)
class Size:
    """A pipeline of small parts, and the settings of the large UNet that replaces its own, if any."""

    pipeline: Callable[[], Any]
    unet: dict[str, Any] | None = None


SIZES = {
    "sd": Size(work.tiny, SD),
    "sdxl": Size(lambda: sdxl(zeros=True), SDXL),
    "tiny": Size(work.tiny),
    "tiny-sdxl": Size(lambda: sdxl(zeros=True)),
}


def open_model(asked: argparse.Namespace, folder: str, precision: str = "") -> Denoiser:
    """The pipeline, saved and opened as anyone's would be. A seed draws the weights, for every precision."""
    size = SIZES[asked.size]
    pipe = size.pipeline()
    if size.unet:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        torch.manual_seed(0)
        with torch.device(asked.device):
            unet = UNet2DConditionModel(**size.unet)
        pipe.register_modules(unet=unet.to("cpu", getattr(torch, asked.precision)))
    pipe.save_pretrained(folder)
    precision = precision or asked.precision
    return load_model(folder, parameters=work.LAYERS, device=asked.device, precision=precision)


def random_batch(model: Denoiser, count: int) -> Batch:
    """`count` random latents with random encodings of the shapes that the network takes."""
    ids = tuple(f"s{i}" for i in range(count))

    def draw(shape: tuple[int, ...], name: str) -> torch.Tensor:
        return torch.stack([normal(shape, one, name) for one in ids]).to(model.device)

    def condition(name: str) -> dict[str, torch.Tensor]:
        return {part: draw(shape, f"{name}-{part}").to(model.dtype) for part, shape in _shapes(model).items()}

    return Batch(ids, condition("caption"), condition("empty"), draw(model.shape, "x_0"))


def _shapes(model: Denoiser) -> dict[str, tuple[int, ...]]:
    """By part of a condition, its shape without the batch, in the widths of the network: the encoders are small."""
    network: Any = model.network
    config, parts = network.config, set(model.encode([""]))
    shapes: dict[str, tuple[int, ...]] = {"text": (TOKENS, config["cross_attention_dim"])}
    if "pooled" in parts:
        sizes = 6
        width = config["projection_class_embeddings_input_dim"] - sizes * config["addition_time_embed_dim"]
        shapes |= {"pooled": (width,), "sizes": (sizes,)}
    assert shapes.keys() == parts, f"parts of a condition without a shape: {parts ^ shapes.keys()}"
    return shapes
