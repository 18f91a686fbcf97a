"""Small text-to-image pipelines, built as real diffusers directories: the benchmark's models and the tests' models.

`pixel_pipeline` and `latent_pipeline` make a `StableDiffusionPipeline`, `patch_pipeline` a `PixArtAlphaPipeline`. The
first and the last have no VAE and denoise RGB directly: diffusers loads them by `from_pretrained(path, vae=None)`.
Weights are random and depend on the seed alone; `concept_trak.evaluation.training.loop` fits them. The tokenizer is
CLIP's, with a token for each word.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PredictionType = Literal["epsilon", "v_prediction"]
WIDTH = 64
"""Width of one token's encoding, and so of the cross attention's keys and values."""


def pixel_pipeline(seed: int, resolution: int = 32) -> StableDiffusionPipeline:
    """The demo's pipeline, untrained: 1.0 M parameters of UNet on RGB in [-1, 1].

    It predicts v, not the noise: near pure noise the noise is the input itself, and a network this narrow would spend
    its training on copying it. Cross attention is at the lowest resolution only (`resolution / 4`), which keeps every
    pass cheap. The pooled text also joins the time embedding, and so reaches the resolutions at which corners are
    drawn.

    Args:
        seed: of the weights.
        resolution: side of the images, in pixels.
    """
    return _pipeline(seed, None, "v_prediction", channels=3, sample_size=resolution, widths=(16, 32, 64))


@dataclass(frozen=True)
class TransformerSize:
    """The size of a transformer: `layers`, each with `heads` of `head_width` channels."""

    layers: int = 4
    heads: int = 4
    head_width: int = 32


LENGTH = 8
"""Tokens per text, start and end included. Three words fit, and a test that assumes CLIP's 77 fails."""
WORDS = ("a", "red", "green", "blue", "triangle", "circle", "square")


def patch_pipeline(
    seed: int,
    words: Sequence[str] = WORDS,
    resolution: int = 32,
    size: TransformerSize = TransformerSize(),
    predicts: PredictionType = "v_prediction",
    length: int = LENGTH,
) -> PixArtAlphaPipeline:
    """An untrained transformer on patches of 4 x 4 pixels of RGB in [-1, 1]: 1.2 M parameters.

    It has PixArt's layout: attention among patches, cross attention to the text, and one table of shifts and scales for
    all blocks. A text encoder of CLIP's kind, which is trained along with it, replaces T5.

    Args:
        seed: seed of the weights.
        words: the vocabulary.
        resolution: side of the images, in pixels.
        size: size of the transformer.
        predicts: the prediction type of its scheduler.
        length: tokens per text.
    """
    vocabulary = tokenizer(words, length)
    with _seeded(seed):
        text_encoder, network = _text_encoder(vocabulary), _transformer(size, resolution)
    parts: dict[str, Any] = {
        "vae": None,
        "text_encoder": text_encoder,
        "tokenizer": vocabulary,
        "transformer": network,
        "scheduler": scheduler(predicts),
    }
    return PixArtAlphaPipeline(**parts)


def latent_pipeline(seed: int, resolution: int = 16) -> StableDiffusionPipeline:
    """A tiny untrained relative of Stable Diffusion, for tests: 4 latent channels at half of `resolution` pixels."""
    with _seeded(seed):
        vae = AutoencoderKL.from_config(
            {
                "block_out_channels": (8, 16),
                "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
                "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
                "latent_channels": 4,
                "norm_num_groups": 4,
                "sample_size": resolution,
                "scaling_factor": 0.5,
            }
        )
    return _pipeline(seed, vae, "epsilon", channels=4, sample_size=resolution // 2, widths=(8, 16))


def scheduler(prediction_type: PredictionType) -> DDIMScheduler:
    """The noise process of Ho et al. (2020): 1000 steps, beta linear from 1e-4 to 0.02.

    `steps_offset=1` changes no noise level; the pipeline's constructor warns about any other value.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _pipeline(
    seed: int,
    vae: Any,
    prediction_type: PredictionType,
    channels: int,
    sample_size: int,
    widths: tuple[int, ...],
) -> StableDiffusionPipeline:
    words = tokenizer()
    with _seeded(seed):
        text_encoder, unet = _text_encoder(words), _unet(channels, sample_size, widths)
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": words,
        "unet": unet,
        "scheduler": scheduler(prediction_type),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed`, and leave the caller's own random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=words.model_max_length,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=END,
        )
    )


def _transformer(size: TransformerSize, sample_size: int) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.head_width,
        cross_attention_dim=size.heads * size.head_width,
        in_channels=3,
        out_channels=3,
        num_layers=size.layers,
        sample_size=sample_size,
        patch_size=4,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )


def _unet(channels: int, sample_size: int, widths: tuple[int, ...]) -> UNet2DConditionModel:
    plain = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


START, END = 0, 1
"""Numbers of the tokens at the start and the end of a text; the second also pads it."""


def tokenizer(words: Sequence[str] = WORDS, length: int = LENGTH) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with one token per word of `words` (letters a to z); other words fall into pieces.

    A word is merged from its end (`e d</w>`, then `r ed</w>`). Since each merge ends in `</w>`, none can fire in the
    middle of another word, which merging from the front would allow (`re` of "red" would break "green").
    """
    merges: dict[Any, None] = {}  # pairs in order, each once
    for word in words:
        for start in range(len(word) - 2, -1, -1):
            merges[word[start], word[start + 1 :] + "</w>"] = None
    tokens = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase, *(letter + "</w>" for letter in ascii_lowercase)]
    tokens += ["".join(pair) for pair in merges]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=list(merges), model_max_length=length
    )
