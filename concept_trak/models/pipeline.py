"""A diffusers pipeline directory as a denoiser: a denoising network, a noise process, perhaps a VAE.

The directory is the model: `unet/` or `transformer/`, `scheduler/` and, for latent models, `vae/`. Only safetensors are
read. alpha and sigma come from the scheduler.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Denoiser, Prediction, attributable
from concept_trak.models.adapters import Adapters, add_adapters, load_network, network_files
from concept_trak.models.loading import load_part, load_settings
from concept_trak.models.noise_schedule import NoiseSchedule, variance_preserving
from concept_trak.models.offload import OffloadedWeights, leaves_device
from concept_trak.models.pipeline_folder import class_of_part, part_classes, part_files, pipeline_class, read_json
from concept_trak.models.quantized_linear import is_quantized
from concept_trak.models.several_devices import divide
from concept_trak.models.text_encoder import TextEncoder
from concept_trak.models.vae import Autoencoder
from concept_trak.store.identity import file_digest


class DenoisingNetwork(NamedTuple):
    """A kind of denoising network.

    Attributes:
        network_class: its class in diffusers.
        predict: (network, x_t [b, c, h, w], times [b], condition) -> raw output [b, c, h, w].
        middle: network -> its module halfway through.
    """

    network_class: Any
    predict: Callable[[Any, Tensor, Tensor, Condition], Tensor]
    middle: Callable[[Any], Any]


def middle_block(network: Any) -> Any:
    """The middle of a transformer's blocks."""
    return network.transformer_blocks[len(network.transformer_blocks) // 2]


def middle_feed_forward(network: Any) -> Any:
    """Of the middle of blocks that return text and image, the image's last layer: [b, image tokens, width]."""
    return middle_block(network).ff


class Pipeline(Denoiser):
    """A pipeline directory as a denoiser. A subclass adds the conditioning of its family.

    Class attributes:
        networks: the denoising networks that it supports, by their part of the directory.
        conditioners: the other parts that the directory must have.
        packing: the side of the squares of latents that `predict` joins to one token of the network.
        autoencoder: how x_0 is made with the VAE.
        float32_vae: whether a VAE with `force_upcast` runs in float32 if the model runs in float16.

    Args:
        path: the directory.
        parameters: a group of `groups` or a pattern of names in the denoising network.
        negative: `empty`, the condition of nothing, for models trained with dropped conditions; else `other_label`.
        combinations: for `other_label`, the conditions to draw another one from.
        device, dtype: the place and the precision of the networks, of the VAE and of the text encoders.
        adapters: a fine-tune, a LoRA and embeddings on top of the directory.
        resolution: the side of the images in pixels; 0 is the model's own.
        frames: of a video model, the frames of a clip in pixels; 0 is a single image.
        offload: whether the text encoders and the VAE are on the device only while they encode: `auto` (if they would
            take more than a fifth of a GPU's memory), `always` or `never`.

    Raises:
        UserError: the directory is no such pipeline, its weights are not safetensors, or a setting does not fit it.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]]
    conditioners: ClassVar[tuple[str, ...]] = ()
    float32_vae: ClassVar[bool] = False
    packing: ClassVar[int] = 1
    autoencoder: ClassVar[type[Autoencoder]] = Autoencoder
    text_encoders: Mapping[str, TextEncoder] = MappingProxyType({})

    def __init__(
        self,
        path: str,
        parameters: str = "all",
        negative: str = "empty",
        combinations: Sequence[str] = (),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        adapters: Adapters = Adapters(),
        resolution: int = 0,
        frames: int = 0,
        offload: str = "auto",
    ) -> None:
        classes = part_classes(Path(path), ("|".join(self.networks), *self.conditioners, "scheduler"))
        self.path, self.negative, self.combinations = Path(path), negative, tuple(combinations)
        self.part = next(part for part in self.networks if part in classes)
        self.denoising = self.networks[self.part]
        self.network = load_network(self.denoising.network_class, self.path, self.part, dtype, device, adapters)
        self.adapters = adapters
        frozen = frozenset(self.network.parameters()) if is_quantized(self.network) else frozenset()
        self.middle = self.denoising.middle(self.network)
        self._read_conditioners(classes, dtype, "cpu")
        self.text_encoders = add_adapters(
            adapters, self.network, self.part, self.text_encoders, pipeline_class(self.path), dtype
        )
        self.vae = self._read_vae(classes, dtype, "cpu")
        self._place_encoders(offload)
        sides = self._sides_of(resolution) if resolution else self._sides()
        self.shape = (self._channels(), *self._frames(frames), *sides)
        scheduler = load_settings(class_of_part(diffusers, classes, "scheduler"), self.path, "scheduler")
        self.schedule = self._read_schedule(scheduler)
        self.alpha, self.sigma = self.schedule.alpha, self.schedule.sigma
        frozen |= self._add_networks(classes, dtype, device)
        self.parameters = attributable(self.network, parameters, self.groups, frozen)

    def _add_networks(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> frozenset[nn.Parameter]:
        """Join the network with others that it is used with. Returns the parameters that are not attributable then."""
        return frozenset()

    @property
    def _encoders(self) -> list[nn.Module]:
        """The text encoders and the VAE."""
        return [encoder.model for encoder in self.text_encoders.values()] + ([self.vae.module] if self.vae else [])

    def _place_encoders(self, offload: str) -> None:
        if leaves_device(offload, self._encoders, self.device):
            self.offload_encoders()
        else:
            for encoder in self._encoders:
                nn.Module.to(encoder, self.device)

    def divide(self, devices: Sequence[str], offload: str = "auto") -> None:
        """Divide the network among several devices; the text encoders and the VAE belong to the first.

        Args:
            devices: such as `cuda:0`, `cuda:1`.
            offload: as of the class.
        """
        divide(self.network, devices)
        self.parameters = {name: self.network.get_parameter(name) for name in self.parameters}
        self._place_encoders(offload)

    def offload_encoders(self) -> None:
        """From now on the text encoders and the VAE are on the network's device only while they encode or decode."""
        self.text_encoders = {
            name: replace(encoder, on_device=OffloadedWeights(encoder.model, self.device).on_device)
            for name, encoder in self.text_encoders.items()
        }
        if self.vae is not None:
            self.vae = copy(self.vae)
            self.vae.on_device = OffloadedWeights(self.vae.module, self.device).on_device

    def _read_conditioners(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> None:
        """Open the parts that turn texts or classes into conditions."""

    def _read_vae(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> Autoencoder | None:
        if "vae" not in classes:
            return None
        settings = read_json(self.path / "vae" / "config.json")
        # diffusers' own default of `AutoencoderKL`, whose settings have block types.
        upcast = self.float32_vae and settings.get("force_upcast", "down_block_types" in settings)
        own = torch.float32 if upcast and dtype == torch.float16 else dtype
        module = load_part(class_of_part(diffusers, classes, "vae"), self.path, "vae", own, device)
        return self.autoencoder(module, dtype)

    def _read_schedule(self, scheduler: Any) -> NoiseSchedule:
        return variance_preserving(scheduler, f"{self.path}/scheduler")

    def _sides(self) -> tuple[int, int]:
        """(h, w) of x_t, from the network's configuration.

        Raises:
            UserError: the configuration has no size.
        """
        config: Any = self.network.config
        size = config["sample_size"]
        sides: tuple[Any, ...] = tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
        if not all(type(side) is int and side > 0 for side in sides):
            value = "null" if size is None else repr(size)
            raise UserError(
                f"{self.path / self.part}/config.json has sample_size {value}; set it to the side of the latents that "
                "the model was trained on (of 512 pixels behind a VAE of factor 8: 64), or of its images without a VAE"
            )
        return sides

    def _frames(self, frames: int) -> tuple[int, ...]:
        """The axis of time in x_t: none for models of images.

        Raises:
            UserError: the model has no clips of so many frames.
        """
        if frames:
            raise UserError(f"data.frames={frames}, and {self.path} draws single images; set data.frames=0")
        return ()

    def _sides_of(self, resolution: int) -> tuple[int, int]:
        """(h, w) of x_t for images of this side.

        Raises:
            UserError: the latents of such an image cannot be divided into the network's patches.
        """
        factor = 1 if self.vae is None else self.vae.factor
        step = factor * self.patch
        if resolution % step:
            raise UserError(f"model.resolution={resolution}; expected a multiple of {step} for this model")
        return resolution // factor, resolution // factor

    @property
    def patch(self) -> int:
        """The side of the squares of latents that the network takes as one token or, as a UNet, as one number."""
        config: Any = self.network.config
        return max(self.packing, config.get("patch_size") or 1, *config.get("all_patch_size", ()))

    def _channels(self) -> int:
        """The channels of x_t, from the network's configuration.

        Raises:
            UserError: the VAE has another number.
        """
        config: Any = self.network.config
        channels = config["in_channels"] // self.packing**2
        latent = channels if self.vae is None else self.vae.channels or channels
        if latent != channels:
            raise UserError(
                f"{self.path / self.part} takes {channels} channels and the VAE has {latent}; expected as many. An "
                "inpainting model takes a mask as well, which no training image has: use the model it was made from"
            )
        return channels

    @property
    def prediction_type(self) -> str:
        return self.schedule.prediction_type

    def __call__(self, x_t: Float[Tensor, "b c *space"], t: int, cond: Condition) -> Prediction:
        times = torch.full((len(x_t),), self.schedule.times[t], device=x_t.device)
        raw = self.denoising.predict(self.network, x_t.to(self.dtype), times, cond).to(x_t.dtype)
        alpha, sigma = self.alpha[t].item(), self.sigma[t].item()
        if self.prediction_type == "v_prediction":
            # In eps units a loss on v is weighted by alpha^2: eps = sigma x_t + alpha v.
            return Prediction(alpha * x_t - sigma * raw, sigma * x_t + alpha * raw)
        return Prediction((x_t - sigma * raw) / alpha, raw)

    @torch.no_grad()
    def to_latent(self, pixels: Float[Tensor, "b 3 *frames height width"]) -> Float[Tensor, "b c *space"]:
        """The mode of the VAE's posterior, (mode - shift) * scale; the pixels themselves without a VAE."""
        pixels = pixels.to(self.device, self.dtype)
        return pixels if self.vae is None else self.vae.encode(pixels)

    @torch.no_grad()
    def to_pixels(self, x_0: Float[Tensor, "b c *space"]) -> Float[Tensor, "b 3 height width"]:
        return x_0 if self.vae is None else self.vae.decode(x_0)

    @property
    def resolution(self) -> int:
        return self.shape[-1] * (1 if self.vae is None else self.vae.factor)

    def identity(self) -> dict[str, str]:
        """sha256 of every file that changes a feature, by its name in the directory, and of the noise process."""
        digests = {name: file_digest(self.path / name) for name in self._files()}
        digests |= self.adapters.digests(self.part)
        digests["schedule"] = hashlib.sha256(self.schedule.digest_bytes()).hexdigest()
        if self.vae is not None and self.vae.runs_wider:
            digests["vae_precision"] = "float32"
        return digests

    def _files(self) -> list[str]:
        """The files of network, VAE and conditioners that are loaded, by their names in the directory."""
        parts = (*self._conditioning_parts(), *(() if self.vae is None else ("vae",)))
        network = [f"{self.part}/{name}" for name in network_files(self.path, self.part, self.adapters)]
        return network + [f"{part}/{name}" for part in parts for name in part_files(self.path, part).names]

    def unused_files(self) -> list[str]:
        """Files in the directory that this model does not load: other variants, a safety checker, notes."""
        scheduler = {f"scheduler/{name}" for name in part_files(self.path, "scheduler").names}
        used = {"model_index.json", *scheduler, *self._files()}
        files = (p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        return sorted(name for name in files if name not in used)

    def _conditioning_parts(self) -> tuple[str, ...]:
        """The parts of the directory, apart from network and VAE, whose files change a condition."""
        return self.conditioners
