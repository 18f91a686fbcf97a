"""Qwen-Image: a transformer on the states of a language model and squares of 2 x 2 latents (Wu et al. 2025).

As in `QwenImagePipeline`, the caption is written into an instruction, whose first tokens are dropped after the language
model has read them. The transformer masks padding. The pipeline rescales a guided prediction to the size of the one
with the caption; a path here is guided without that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.flow_text_to_image import FlowTextToImage, pack, unpack
from concept_trak.models.pipeline import DenoisingNetwork, middle_block
from concept_trak.models.text_encoder import TextEncoder

DROPPED = 34
"""Tokens of the instruction before the caption."""
TOKENS = 512
"""Tokens from the caption on that the transformer reads."""
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def predict_qwen_image(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    h, w = x_t.shape[2:]
    inputs = {"encoder_hidden_states": cond["text"], "encoder_hidden_states_mask": cond["mask"], "timestep": times}
    shapes = [[(1, h // 2, w // 2)]] * len(x_t)
    return unpack(network(pack(x_t), **inputs, img_shapes=shapes, return_dict=False)[0], h, w)


class QwenImage(FlowTextToImage):
    """A condition has `text` [b, tokens, width], zeros behind the text, and `mask` [b, tokens]."""

    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(
            QwenImageTransformer2DModel, predict_qwen_image, lambda network: middle_block(network).img_mlp
        )
    }
    packing: ClassVar[int] = 2
    default_side: ClassVar[int | None] = 128
    time_of_noise: ClassVar[float] = 1.0

    def _open_encoder(self, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        if self.network.zero_cond_t:
            raise UserError(f"{self.path} edits pictures (zero_cond_t); expected a model that draws from texts alone")
        opened = super()._open_encoder(classes, encoder, dtype, device)
        limit = min(opened.tokenizer.model_max_length, DROPPED + TOKENS)
        return replace(opened, limit=limit, template=TEMPLATE)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """The last layer from the caption on, padded to the model's own length."""
        (states,), mask = self.text_encoders["text_encoder"].layers(texts, (-1,))
        mask = mask[:, DROPPED:]
        return {"text": states[:, DROPPED:] * mask[:, :, None].to(states.dtype), "mask": mask}


PIPELINES: dict[str, type[Denoiser]] = {"QwenImagePipeline": QwenImage}
