"""Text-to-image pipelines as diffusers saves them: a denoising network that listens to a text encoder, perhaps a VAE.

The directory is the model: `unet/` (Stable Diffusion) or `transformer/` (PixArt), `text_encoder/`, `tokenizer/`,
`scheduler/` and, for latent models, `vae/`. Only safetensors are read. alpha and sigma come from the scheduler.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from concept_trak.denoiser import Condition, Denoiser, Prediction, attributable
from concept_trak.models.directory import index_of, kind, load, read
from concept_trak.models.reader import open_reader, tokenizer_of
from concept_trak.store.identity import file_digest


def unet(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    return network(x_t, times, encoder_hidden_states=cond["text"], return_dict=False)[0]


def transformer(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """PixArt's call; where it also learns a variance, that is the second half of the channels and not asked for."""
    no_size = {"resolution": None, "aspect_ratio": None}
    asked = {"encoder_hidden_states": cond["text"], "timestep": times, "added_cond_kwargs": no_size}
    return network(x_t, **asked, return_dict=False)[0][:, : x_t.shape[1]]


def halfway(network: Any) -> Any:
    """The middle of a transformer's blocks."""
    return network.transformer_blocks[len(network.transformer_blocks) // 2]


ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Family(NamedTuple):
    """A denoising network: its class, how its raw output is asked for, and which of its modules stands halfway."""

    kind: Any
    ask: Callable[[Any, Tensor, Tensor, Condition], Tensor]
    middle: Callable[[Any], Any]


# By the name of its part in the pipeline directory.
NETWORKS: dict[str, Family] = {
    "unet": Family(UNet2DConditionModel, unet, lambda network: network.mid_block),
    "transformer": Family(PixArtTransformer2DModel, transformer, halfway),
}


class TextToImage(Denoiser):
    """A pipeline directory as a denoiser: Stable Diffusion 1.x and 2.x, PixArt. Other families say what differs.

    Class attributes:
        networks: the denoising networks it knows, by their part of the directory.
        encoders: the text encoders that must be there, each with a tokenizer of the same ending.

    Args:
        path: the directory.
        parameters: a group of `denoiser.GROUPS` or a pattern of names in the denoising network.
        negative: `empty`, the encoding of "", for models trained with dropped captions; else `other_label`.
        combinations: for `other_label`, the captions to draw another one from.
        device, dtype: where and in what the networks run; the VAE and the text encoder alike.

    Raises:
        ValueError: the directory is no such pipeline, its weights are not safetensors, or a setting does not fit it.
    """

    networks: ClassVar[dict[str, Family]] = NETWORKS
    encoders: tuple[str, ...] = ("text_encoder",)

    def __init__(
        self,
        path: str,
        parameters: str = "all",
        negative: str = "empty",
        combinations: Sequence[str] = (),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        texts = [part for encoder in self.encoders for part in (encoder, tokenizer_of(encoder))]
        self.path, index = Path(path), index_of(Path(path), ("|".join(self.networks), *texts, "scheduler"))
        self.negative, self.combinations = negative, tuple(combinations)
        self.part = next(part for part in self.networks if part in index)
        self.family = self.networks[self.part]
        self.network = load(self.family.kind, self.path / self.part, dtype, device)
        self.middle = self.family.middle(self.network)
        self.parameters = attributable(self.network, parameters)
        heard = [encoder for encoder in ENCODERS if encoder in index]
        self.readers = {encoder: open_reader(self.path, index, encoder, dtype, device) for encoder in heard}
        self._require_unmasked()
        self.vae = None
        if "vae" in index:
            vae = load(kind(diffusers, index, "vae"), self.path / "vae", dtype, device)
            self.vae = vae.requires_grad_(False)
        self._read_schedule(read(kind(diffusers, index, "scheduler"), self.path / "scheduler"))
        config: Any = self.network.config
        side = config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        self.shape = (config["in_channels"], height, width)

    def _require_unmasked(self) -> None:
        """PixArt with T5 was trained with padding masked in every layer, at 1024 pixels with sizes: not yet here."""
        t5 = self.readers["text_encoder"].model.config.model_type == "t5"
        sizes = getattr(self.network, "use_additional_conditions", False)
        if self.family.ask is transformer and (t5 or sizes):
            what = "a T5 encoder, whose padding it masks" if t5 else "image sizes"
            raise ValueError(
                f"{self.path}/transformer listens to {what}, which is not supported yet and would give wrong numbers "
                "without a word; expected a PixArt transformer with CLIP's kind of text encoder and "
                "use_additional_conditions=false."
            )

    def _read_schedule(self, scheduler: Any) -> None:
        kind, kept = scheduler.config.get("prediction_type", "epsilon"), getattr(scheduler, "alphas_cumprod", None)
        if kept is None or len(kept) != 1000 or kind not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"{self.path}/scheduler is a {type(scheduler).__name__} with prediction_type={kind!r}; expected 1000 "
                "steps of alphas_cumprod and prediction_type epsilon or v_prediction. Save the pipeline with a DDIM or "
                "DDPM scheduler."
            )
        self.alpha, self.sigma = kept.double().sqrt(), (1 - kept.double()).sqrt()
        self.prediction_type = kind

    def __call__(self, x_t: Float[Tensor, "b c h w"], t: int, cond: Condition) -> Prediction:
        times = torch.full((len(x_t),), t, device=x_t.device)
        raw = self.family.ask(self.network, x_t.to(self.dtype), times, cond).to(x_t.dtype)
        alpha, sigma = self.alpha[t].item(), self.sigma[t].item()
        if self.prediction_type == "v_prediction":
            # In eps units a loss on v is weighted by alpha^2: eps = sigma x_t + alpha v.
            return Prediction(alpha * x_t - sigma * raw, sigma * x_t + alpha * raw)
        return Prediction((x_t - sigma * raw) / alpha, raw)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """Text encodings, padded to the model's own length.

        There is an attention mask only where the text encoder's configuration asks for one.
        """
        return {"text": self.readers["text_encoder"].last(texts)}

    def require_whole(self, text: str) -> None:
        for encoder, reader in self.readers.items():
            if (length := reader.length(text)) > reader.limit:
                raise ValueError(
                    f"{text!r} has {length} tokens, and the model's {encoder} reads {reader.limit}, those around the "
                    "text included: the rest would be ignored. Shorten it."
                )

    @torch.no_grad()
    def to_latent(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """The mode of the VAE's posterior, (mode - shift) * scaling; the pixels themselves without a VAE."""
        pixels = pixels.to(self.device, self.dtype)
        if self.vae is None:
            return pixels
        mode = self.vae.encode(pixels).latent_dist.mode()
        return (mode - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def to_pixels(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        if self.vae is None:
            return x_0
        shift = self.vae.config.get("shift_factor") or 0.0
        return self.vae.decode((x_0 / self.vae.config["scaling_factor"] + shift).to(self.dtype)).sample

    @property
    def resolution(self) -> int:
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.shape[-1] * factor

    def identity(self) -> dict[str, str]:
        """sha256 of every file that moves a feature, by its name in the directory, and of the noise process."""
        names = [
            p
            for part in (self.part, *(p for e in self.readers for p in (e, tokenizer_of(e))), "vae")
            for p in sorted((self.path / part).rglob("*"))
            if p.is_file()
        ]
        digests = {p.relative_to(self.path).as_posix(): file_digest(p) for p in names}
        schedule = self.prediction_type.encode() + self.alpha.numpy().tobytes()
        return {**digests, "schedule": hashlib.sha256(schedule).hexdigest()}


PIPELINES = {
    name: TextToImage for name in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "PixArtAlphaPipeline")
}
