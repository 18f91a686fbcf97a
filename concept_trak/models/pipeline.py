"""What every diffusers pipeline directory has: a denoising network, a noise process, perhaps a VAE.

The directory is the model: `unet/` or `transformer/`, `scheduler/` and, for latent models, `vae/`. Only safetensors are
read. alpha and sigma come from the scheduler.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser, Prediction, attributable
from concept_trak.models.adapters import Adapters, add_embedding, add_lora, load_fine_tune
from concept_trak.models.loading import class_of_part, from_folder, load_part, part_classes, pipeline_class
from concept_trak.models.text_encoder import TextEncoder
from concept_trak.store.identity import file_digest


class DenoisingNetwork(NamedTuple):
    """A denoising network: its class, how its raw output is asked for, and which of its modules stands halfway."""

    kind: Any
    ask: Callable[[Any, Tensor, Tensor, Condition], Tensor]
    middle: Callable[[Any], Any]


def halfway(network: Any) -> Any:
    """The middle of a transformer's blocks."""
    return network.transformer_blocks[len(network.transformer_blocks) // 2]


class Pipeline(Denoiser):
    """A pipeline directory as a denoiser, but for what it is conditioned on, which its family says.

    Class attributes:
        networks: the denoising networks it knows, by their part of the directory.
        conditioners: the other parts that must be there.

    Args:
        path: the directory.
        parameters: a group of `groups` or a pattern of names in the denoising network.
        negative: `empty`, the condition of nothing, for models trained with dropped conditions; else `other_label`.
        combinations: for `other_label`, the conditions to draw another one from.
        device, dtype: where and in what the networks run; the VAE and the text encoders alike.
        beside: a fine-tune, a LoRA, embeddings that belong to the model.

    Raises:
        ValueError: the directory is no such pipeline, its weights are not safetensors, or a setting does not fit it.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]]
    conditioners: ClassVar[tuple[str, ...]] = ()
    readers: Mapping[str, TextEncoder] = MappingProxyType({})

    def __init__(
        self,
        path: str,
        parameters: str = "all",
        negative: str = "empty",
        combinations: Sequence[str] = (),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        beside: Adapters = Adapters(),
    ) -> None:
        index = part_classes(Path(path), ("|".join(self.networks), *self.conditioners, "scheduler"))
        self.path, self.negative, self.combinations = Path(path), negative, tuple(combinations)
        self.part = next(part for part in self.networks if part in index)
        self.family = self.networks[self.part]
        self.network = load_part(self.family.kind, self.path / self.part, dtype, device)
        self.beside = beside
        if beside.weights:
            load_fine_tune(self.network, Path(beside.weights))
        self.middle = self.family.middle(self.network)
        self._read_conditioners(index, dtype, device)
        self._add(beside)
        self.vae = None
        if "vae" in index:
            vae = load_part(class_of_part(diffusers, index, "vae"), self.path / "vae", dtype, device)
            self.vae = vae.requires_grad_(False)
        self._read_schedule(from_folder(class_of_part(diffusers, index, "scheduler"), self.path / "scheduler"))
        self.parameters = attributable(self.network, parameters, self.groups)
        config: Any = self.network.config
        side = config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        self.shape = (config["in_channels"], height, width)

    def _read_conditioners(self, index: dict[str, str], dtype: torch.dtype, device: str) -> None:
        """Open what turns texts or labels into conditions."""

    def _add(self, beside: Adapters) -> None:
        """A LoRA and embeddings, once there are encoders to teach."""
        for name in beside.embeddings:
            self.readers = add_embedding(self.readers, Path(name))
        if beside.lora:
            add_lora(self.network, self.readers, Path(beside.lora), pipeline_class(self.path), self.part)
            for one in (self.network, *(reader.model for reader in self.readers.values())):
                one.to(self.device, self.dtype)

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
        parts = (self.part, *self._conditioning_parts(), "vae")
        names = [p for part in parts for p in sorted((self.path / part).rglob("*")) if p.is_file()]
        digests = {p.relative_to(self.path).as_posix(): file_digest(p) for p in names}
        digests |= self.beside.digests(self.part)
        schedule = self.prediction_type.encode() + self.alpha.numpy().tobytes()
        return {**digests, "schedule": hashlib.sha256(schedule).hexdigest()}

    def _conditioning_parts(self) -> tuple[str, ...]:
        """The parts of the directory, beside network and VAE, whose files move a condition."""
        return self.conditioners
