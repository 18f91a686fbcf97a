"""Flux 1: a transformer on T5's tokens and squares of 2 x 2 latents, with CLIP's pooled text (Black Forest Labs 2024).

Flux.1 dev is distilled: one pass imitates a guided prediction of the strength that the network is given. As in
`FluxPipeline`, this is 3.5, and it is the same in every condition. So the direction between two conditions is that
between two prompts at one strength. "" is a caption like any other: nothing says that the model was trained with
dropped captions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.flow_text_to_image import FlowTextToImage, pack, positions, unpack
from concept_trak.models.pipeline import DenoisingNetwork, middle_feed_forward

GUIDANCE = 3.5
"""The strength of guidance that a distilled network imitates, as in `FluxPipeline`."""


def flux_inputs(x_t: Tensor, times: Tensor, cond: Condition) -> dict[str, Any]:
    """The inputs of the network beside the packed state, by its own names."""
    h, w = x_t.shape[2:]
    inputs = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"], "timestep": times}
    inputs |= {"img_ids": positions(h // 2, w // 2, 3, x_t.device), "guidance": cond.get("guidance")}
    return inputs | {"txt_ids": torch.zeros(cond["text"].shape[1], 3, device=x_t.device)}


def guidance_condition(denoiser: Denoiser, count: int) -> Condition:
    """The strength of guidance of each of `count` samples."""
    return {"guidance": torch.full((count,), GUIDANCE, device=denoiser.device, dtype=denoiser.dtype)}


def predict_flux(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    return unpack(network(pack(x_t), **flux_inputs(x_t, times, cond), return_dict=False)[0], *x_t.shape[2:])


class Flux(FlowTextToImage):
    """A condition has `text` [b, tokens of T5, width], `pooled` [b, width of CLIP], and `guidance` [b] if the network
    is distilled.
    """

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(FluxTransformer2DModel, predict_flux, middle_feed_forward)
    }
    conditioners: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    packing: ClassVar[int] = 2
    default_side: ClassVar[int | None] = 128
    time_of_noise: ClassVar[float] = 1.0

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """T5's last layer without a mask, and CLIP's end of text."""
        text, pooled = (
            self.text_encoders["text_encoder_2"].last(texts),
            self.text_encoders["text_encoder"].pooled(texts),
        )
        config: Any = self.network.config
        guidance = guidance_condition(self, len(texts)) if config["guidance_embeds"] else {}
        return {"text": text, "pooled": pooled, **guidance}


PIPELINES: dict[str, type[Denoiser]] = {"FluxPipeline": Flux}
