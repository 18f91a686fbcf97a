"""Z-Image: a transformer on the tokens of an image and of Qwen 3, with texts of their own length (Alibaba, 2025).

As in `ZImagePipeline`: the network is given 1 - sigma and predicts x_0 - eps. It takes lists of images and of texts,
and joins the texts of a batch before its first layers. A text is written as a user's turn of a conversation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from torch import Tensor

from concept_trak.attribution.denoiser import GROUPS, Condition
from concept_trak.models.flow_text_to_image import FlowTextToImage
from concept_trak.models.pipeline import DenoisingNetwork
from concept_trak.models.text_encoder import TextEncoder

TOKENS = 512


def predict_z_image(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """v [b, c, h, w], of the network's own output with its sign turned."""
    texts = [text[mask.bool()] for text, mask in zip(cond["text"], cond["mask"], strict=True)]
    images = network(list(x_t.unsqueeze(2)), 1 - times, texts, return_dict=False)[0]
    return -torch.stack(images).squeeze(2)


class ZImage(FlowTextToImage):
    """A condition has `text` [b, 512, width] and `mask` [b, 512]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(
            ZImageTransformer2DModel, predict_z_image, lambda network: network.layers[len(network.layers) // 2]
        )
    }
    groups: ClassVar[Mapping[str, str]] = {"all": "", "attention": r"\battention\.", "lora": GROUPS["lora"]}
    time_of_noise: ClassVar[float] = 1.0
    default_side: ClassVar[int | None] = 128

    def _open_encoder(self, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        opened = super()._open_encoder(classes, encoder, dtype, device)
        turn = [{"role": "user", "content": "{}"}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return replace(opened, limit=TOKENS, template=opened.tokenizer.apply_chat_template(turn, **options))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        (text,), mask = self.text_encoders["text_encoder"].layers(texts, [-2])
        return {"text": text, "mask": mask}


PIPELINES = {"ZImagePipeline": ZImage}
