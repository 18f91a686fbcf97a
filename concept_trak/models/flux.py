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


def predict_flux(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    h, w = x_t.shape[2:]
    inputs = {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"], "timestep": times}
    inputs |= {"img_ids": positions(h // 2, w // 2, 3, x_t.device), "guidance": cond.get("guidance")}
    inputs |= {"txt_ids": torch.zeros(cond["text"].shape[1], 3, device=x_t.device)}
    return unpack(network(pack(x_t), **inputs, return_dict=False)[0], h, w)


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
        if not config["guidance_embeds"]:
            return {"text": text, "pooled": pooled}
        guidance = torch.full((len(texts),), GUIDANCE, device=self.device, dtype=self.dtype)
        return {"text": text, "pooled": pooled, "guidance": guidance}


PIPELINES: dict[str, type[Denoiser]] = {"FluxPipeline": Flux}
