"""IP-Adapter: attention to a reference picture beside the text (Ye et al. 2023), on Stable Diffusion 1.x and SDXL.

    Z = softmax(Q K^T / sqrt(d)) V + softmax(Q K'^T / sqrt(d)) V',    K' = c W'_k,  V' = c W'_v,
    c = LayerNorm(W e + b), four tokens of the picture,    e = CLIP's embedding of the picture

in every attention to the text, at full strength, as in training. The UNet was frozen in training, so only the adapter's
parameters W, b, W'_k, W'_v and those of the norm are attributable, whatever `model.parameters` selects.

`save_pretrained` writes the adapter into the UNet's own file, and `from_pretrained` of diffusers leaves it out there.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition
from concept_trak.data.text import one_line
from concept_trak.models.image_encoder import ENCODER, PREPARATION, ImageEncoder, open_image_encoder
from concept_trak.models.loading import ready
from concept_trak.models.offload import OffloadedWeights
from concept_trak.models.pipeline import DenoisingNetwork
from concept_trak.models.pipeline_folder import part_files
from concept_trak.models.sdxl import StableDiffusionXL, added_condition
from concept_trak.models.text_to_image import TextToImage
from concept_trak.store.identity import file_digest

PART = "unet"
PROJECTION = "encoder_hid_proj.image_projection_layers."
ADAPTER = re.compile(rf"{re.escape(PROJECTION)}|.*\.processor\.to_[kv]_ip\.")
"""The names of an adapter's tensors in a UNet."""
KINDS = {
    "0.latents": "IP-Adapter Plus",
    "0.proj.net.0.proj.weight": "IP-Adapter FaceID Plus",
    "0.ff.net.0.proj.weight": "IP-Adapter Full Face or FaceID",
}
"""Tensors of the projections that are not read, with the name of the kind."""


class UNetBesideAdapter(UNet2DConditionModel):
    """A UNet whose file may have an adapter's tensors, which are not the UNet's own."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [ADAPTER.pattern]


def adapter_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an IP-Adapter in the UNet's file of a pipeline directory, by their names in the UNet.

    Raises:
        UserError: the file cannot be read.
    """
    folder, tensors = path / PART, {}
    # Without weights there is no adapter: beside a GGUF file the folder may have the configuration alone.
    for name in part_files(path, PART).weights if any(folder.glob("*.safetensors")) else ():
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(folder / name, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys() if ADAPTER.match(key)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / name} is no whole safetensors file ({one_line(error)}); save the pipeline again"
            ) from error
    return tensors


def add_ip_adapter(unet: Any, tensors: Mapping[str, Tensor], width: int, name: str, dtype: Any, device: Any) -> None:
    """Add an IP-Adapter's layers to a UNet.

    Args:
        unet: of diffusers.
        tensors: the adapter's, by their names in the UNet.
        width: the numbers of a picture's embedding.
        name: of the adapter, for messages.
        dtype, device: the precision and the place of its weights.

    Raises:
        UserError: there are several adapters, it is of a kind that is not read, or it does not fit the UNet or the
            image encoder.
    """
    _require_plain(tensors, name)
    projection = _projection(tensors, width, name)
    keys = {layer: tensors[weight].shape for layer in unet.attn_processors
            if (weight := f"{layer}.to_k_ip.0.weight") in tensors}  # fmt: skip
    tokens = (projection.num_image_text_embeds,)
    added = {layer: IPAdapterAttnProcessor2_0(*shape, num_tokens=tokens) for layer, shape in keys.items()}
    unet.set_attn_processor(unet.attn_processors | added)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    _fill(unet, tensors, name)
    for layer, module in {"encoder_hid_proj": unet.encoder_hid_proj, **added}.items():
        ready(module, f"{name}, {layer}", dtype, device)


def _require_plain(tensors: Mapping[str, Tensor], name: str) -> None:
    if f"{PROJECTION}1." in {key[: len(PROJECTION) + 2] for key in tensors}:
        raise UserError(f"{name} has several IP-Adapters; save the pipeline with the one that is attributed")
    for key, kind in KINDS.items():
        if PROJECTION + key in tensors:
            raise UserError(
                f"{name} has an {kind}, which is not read; expected an IP-Adapter of four tokens, whose projection is "
                "one linear layer and a norm"
            )


def _projection(tensors: Mapping[str, Tensor], width: int, name: str) -> ImageProjection:
    weight, norm = (tensors.get(f"{PROJECTION}0.{key}.weight") for key in ("image_embeds", "norm"))
    if weight is None or norm is None:
        raise UserError(f"{name} has layers of an IP-Adapter and not its projection; save the pipeline again")
    if weight.shape[1] != width:
        raise UserError(
            f"{name} reads embeddings of {weight.shape[1]} numbers, and {ENCODER} computes {width}; expected the image "
            "encoder that the IP-Adapter was trained with"
        )
    return ImageProjection(width, len(norm), len(weight) // len(norm))


def _fill(unet: Any, tensors: Mapping[str, Tensor], name: str) -> None:
    own = {key: value for key, value in unet.state_dict().items() if ADAPTER.match(key)}
    wrong = sorted(own.keys() ^ tensors.keys())
    if wrong := wrong or sorted(key for key in own if own[key].shape != tensors[key].shape):
        raise UserError(
            f"{name} does not fit the UNet: {len(wrong)} tensors are missing, not known to it or of another shape "
            f"({wrong[0]}, ...); expected an IP-Adapter that was trained on this base"
        )
    unet.load_state_dict(dict(tensors), strict=False)


def reference_condition(cond: Condition) -> dict[str, list[Tensor]]:
    """The input of the UNet beside the text: for each adapter, the embeddings of its pictures, [b, 1, width]."""
    return {"image_embeds": [cond["reference"][:, None]]}


def predict_with_reference(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]."""
    inputs = {"encoder_hidden_states": cond["text"], "added_cond_kwargs": reference_condition(cond)}
    return network(x_t, times, **inputs, return_dict=False)[0]


def predict_with_reference_sdxl(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w]."""
    added = added_condition(cond) | reference_condition(cond)
    return network(
        x_t, times, encoder_hidden_states=cond["text"], added_cond_kwargs=added, return_dict=False
    )[0]  # fmt: skip


class IPAdapter(TextToImage):
    """A condition has `text` [b, tokens, width] and `reference` [b, width], a picture's embedding; zeros are none."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        PART: DenoisingNetwork(UNetBesideAdapter, predict_with_reference, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = (*TextToImage.conditioners, ENCODER)
    takes_image: ClassVar[bool] = True
    own_image: ClassVar[bool] = True
    image_encoder: ImageEncoder

    def _read_conditioners(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> None:
        super()._read_conditioners(classes, dtype, device)
        self.image_encoder = open_image_encoder(self.path, dtype, device)

    @property
    def _encoders(self) -> list[nn.Module]:
        return [*super()._encoders, self.image_encoder.model]

    def offload_encoders(self) -> None:
        super().offload_encoders()
        weights = OffloadedWeights(self.image_encoder.model, self.device)
        self.image_encoder = replace(self.image_encoder, on_device=weights.on_device)

    def _add_networks(self, classes: Mapping[str, str], dtype: torch.dtype, device: str) -> frozenset[nn.Parameter]:
        base, name = frozenset(self.network.parameters()), str(self.path / PART)
        add_ip_adapter(self.network, adapter_tensors(self.path), self.image_encoder.width, name, dtype, device)
        return base

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Condition:
        return {"reference": self.image_encoder.embed(pixels).to(self.device)}

    def empty_image(self, count: int) -> Condition:
        return {"reference": torch.zeros(count, self.image_encoder.width, dtype=self.dtype, device=self.device)}

    def identity(self) -> dict[str, str]:
        """With the file of the adapter also where `model.weights` has that of the UNet."""
        files = part_files(self.path, PART).weights if self.adapters.weights else ()
        return {**super().identity(), **{f"ip_adapter/{name}": file_digest(self.path / PART / name) for name in files}}

    def _conditioning_parts(self) -> tuple[str, ...]:
        prepared = (PREPARATION,) if (self.path / PREPARATION).is_dir() else ()
        return (*super()._conditioning_parts(), ENCODER, *prepared)


class IPAdapterXL(IPAdapter, StableDiffusionXL):
    """A condition is that of SDXL and has `reference` [b, width], a picture's embedding; zeros are none."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        PART: DenoisingNetwork(UNetBesideAdapter, predict_with_reference_sdxl, lambda network: network.mid_block)
    }
    conditioners: ClassVar[tuple[str, ...]] = (*StableDiffusionXL.conditioners, ENCODER)


ADAPTED: dict[type, type] = {TextToImage: IPAdapter, StableDiffusionXL: IPAdapterXL}
"""The family of a pipeline with an IP-Adapter, by that without."""


def with_adapter(family: type, path: Path) -> type:
    """The family that opens a pipeline directory, which may have an IP-Adapter in the file of its UNet."""
    return ADAPTED[family] if family in ADAPTED and adapter_tensors(path) else family
