"""A tiny Stable Diffusion, and its weights in one file under the names of the original code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from concept_trak.models import small
from tests.models.tiny import vae

LAYERS, BLOCKS = 1, 2
INSIDE = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
          ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"))  # fmt: skip
VAE_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def tiny_pipeline() -> Any:
    """Of the published layout: no pooled text, which the small pipelines add."""
    pipe = small.latent_pipeline(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=LAYERS, norm_num_groups=4,
        attention_head_dim=2, cross_attention_dim=small.WIDTH,
    )  # fmt: skip
    parts = {**pipe.components, "unet": unet, "vae": vae(4)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def unet_names() -> Iterator[tuple[str, str]]:
    """(diffusers' beginning, the original's) of every module of the UNet."""
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
                ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                ("mid_block.attentions.0", "middle_block.1"), ("mid_block.resnets.0", "middle_block.0"),
                ("mid_block.resnets.1", "middle_block.2"))  # fmt: skip
    step = LAYERS + 1
    for i in range(BLOCKS):
        yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{step * (i + 1)}.0.op"
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{step * i + LAYERS}.{2 if i == 0 else 1}"
        for j in range(LAYERS):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{step * i + j + 1}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{step * i + j + 1}.1"
        for j in range(LAYERS + 1):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{step * i + j}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{step * i + j}.1"


def vae_names() -> Iterator[tuple[str, str]]:
    for side in ("encoder", "decoder"):
        yield f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        yield from ((f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}") for i in range(2))
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
    for i in range(BLOCKS):
        yield f"encoder.down_blocks.{i}.downsamplers.0", f"encoder.down.{i}.downsample"
        yield f"decoder.up_blocks.{i}.upsamplers.0", f"decoder.up.{BLOCKS - 1 - i}.upsample"
        yield from ((f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}") for j in range(2))
        yield from ((f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{BLOCKS - 1 - i}.block.{j}") for j in range(3))


def begun(key: str, names: dict[str, str]) -> str:
    start = next((s for s in sorted(names, key=len, reverse=True) if key.startswith(f"{s}.")), None)
    return key if start is None else names[start] + key[len(start) :]


def original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    result, names = {}, dict(unet_names())
    for key, value in state.items():
        renamed = begun(key, names)
        if ".resnets." in key:
            for ours, theirs in INSIDE:
                renamed = renamed.replace(f".{ours}.", f".{theirs}.")
        result[f"model.diffusion_model.{renamed}"] = value
    return result


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    result, names = {}, dict(vae_names())
    for key, value in state.items():
        renamed = begun(key, names).replace("conv_shortcut", "nin_shortcut")
        if ".attentions." in key:
            for ours, theirs in VAE_ATTENTION:
                renamed = renamed.replace(f".{ours}.", f".{theirs}.")
            value = value[..., None, None] if value.dim() == 2 else value
        result[f"first_stage_model.{renamed}"] = value
    return result


def original_checkpoint(pipe: Any, file: Path) -> Path:
    """The pipeline's weights in one file."""
    text = {f"cond_stage_model.transformer.text_model.{key}": value
            for key, value in pipe.text_encoder.state_dict().items()}  # fmt: skip
    state = {**original_unet(pipe.unet.state_dict()), **original_vae(pipe.vae.state_dict()), **text}
    save_file({key: value.contiguous().to(torch.float32) for key, value in state.items()}, file)
    return file
