"""Wan 2.1 and 2.2: a transformer on blocks of latents of a clip, with cross attention to UMT5 (Wan et al. 2025).

A clip of 1 + 4 k frames has 1 + k frames of latents, because the VAE is causal in time; a single image is a clip of
one frame. As in `WanPipeline`, the text is padded with zeros to 512 tokens and its padding is not masked. With
`expand_timesteps` (Wan 2.2, 5B) the pipeline gives each token a time. Without a conditioning image all of these times
are equal, so here each sample has one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import GROUPS, Condition
from concept_trak.models.flow_text_to_image import FlowTextToImage
from concept_trak.models.pipeline import DenoisingNetwork
from concept_trak.models.pipeline_folder import part_classes
from concept_trak.models.vae import Autoencoder

TOKENS = 512
HEIGHT, WIDTH = 480, 832
"""Pixels of the clips that `WanPipeline` draws where nothing else is set."""


def predict_wan(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, f, h, w], v."""
    return network(x_t, times, encoder_hidden_states=cond["text"], return_dict=False)[0]


class ClipAutoencoder(Autoencoder):
    """A VAE of clips, [b, frames, channels, height, width]; all of them have as many frames."""

    @staticmethod
    def latents_of(module: Any, pixels: Float[Tensor, "b 3 *frames height width"]) -> Float[Tensor, "b f c h w"]:
        """The mode of the posterior of a clip, or of an image as its only frame."""
        clips = pixels.reshape(*pixels.shape[:2], -1, *pixels.shape[-2:])
        return module.encode(clips).latent_dist.mode().transpose(1, 2)

    @staticmethod
    def images_of(module: Any, latents: Float[Tensor, "b f c h w"]) -> Float[Tensor, "b 3 height width"]:
        """The first frame of the clip, which depends on the first frame of latents alone."""
        return module.decode(latents[:, :1].transpose(1, 2)).sample[:, :, 0]


class Wan(FlowTextToImage):
    """A condition has `text` [b, 512, width], zeros behind the text."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(
            WanTransformer3DModel, predict_wan, lambda network: network.blocks[len(network.blocks) // 2]
        )
    }
    groups: ClassVar[Mapping[str, str]] = GROUPS
    limits: ClassVar[Mapping[str, int]] = MappingProxyType({"text_encoder": TOKENS})
    autoencoder: ClassVar[type[Autoencoder]] = ClipAutoencoder

    def __init__(self, path: str, *args: Any, **options: Any) -> None:
        if "transformer_2" in part_classes(Path(path), ()):
            raise UserError(
                f"{path} has two denoising networks, one for high and one for low noise (Wan 2.2, 14B); expected "
                "one, as in Wan 2.1 and Wan 2.2, 5B"
            )
        super().__init__(path, *args, **options)
        # diffusers keeps the tables of positions in float32, whatever the precision of the network.
        config: Any = self.network.config
        sizes = config["attention_head_dim"], tuple(config["patch_size"]), config["rope_max_seq_len"]
        self.network.rope = WanRotaryPosEmbed(*sizes).to(self.device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        text, mask = self.text_encoders["text_encoder"].masked(texts)
        return {"text": text * mask[:, :, None].to(text.dtype)}

    def to_latent(self, pixels: Float[Tensor, "b 3 *frames height width"]) -> Float[Tensor, "b c f h w"]:
        return super().to_latent(pixels).transpose(1, 2)

    def to_pixels(self, x_0: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b 3 height width"]:
        return super().to_pixels(x_0.transpose(1, 2))

    def _frames(self, frames: int) -> tuple[int, ...]:
        assert self.vae is not None, "every Wan has a VAE"
        step = self.vae.module.config["scale_factor_temporal"]
        more, rest = divmod(max(frames, 1) - 1, step)
        if rest:
            raise UserError(
                f"data.frames={frames}, and the model's clips have 1 + {step} k frames; set it to {1 + step * more} or "
                f"{1 + step * (more + 1)}"
            )
        return (1 + more,)

    def _sides(self) -> tuple[int, int]:
        assert self.vae is not None, "every Wan has a VAE"
        return HEIGHT // self.vae.factor, WIDTH // self.vae.factor

    @property
    def patch(self) -> int:
        config: Any = self.network.config
        return config["patch_size"][-1]


PIPELINES = {"WanPipeline": Wan}
