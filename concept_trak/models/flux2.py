"""Flux.2 dev and Klein: a transformer on three layers of a language model and squares of 2 x 2 latents, normalized.

As in `Flux2Pipeline` and `Flux2KleinPipeline`, the caption is a message to the language model, and padding is masked
there alone. The levels are shifted by the size of the image and by the number of steps, which is 50 here, as in both.
Klein's base model was trained with dropped captions; the distilled one (`is_distilled`) is sampled without guidance,
and dev imitates guidance of the strength that it is given, as `flux.py` describes: for these "" is a caption like any
other.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser
from concept_trak.models.flow_text_to_image import FlowTextToImage, positions
from concept_trak.models.pipeline import DenoisingNetwork, middle_feed_forward
from concept_trak.models.text_encoder import TextEncoder

TOKENS = 512
"""Tokens that the transformer reads, those around the caption included."""
GUIDANCE = 4.0
"""The strength of guidance that dev imitates, as in `Flux2Pipeline`."""
STEPS = 50


def shift_of_flux2(config: Mapping[str, Any], tokens: int) -> float:
    """mu at an image's tokens and 50 steps: between two lines, fitted at 10 and at 200 steps, as the pipeline has them.

    From 4300 tokens on it is the line of 200 steps.
    """
    at_10, at_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    return at_200 if tokens > 4300 else at_10 + (at_200 - at_10) * (STEPS - 10) / (200 - 10)


def predict_flux2(network: Any, x_t: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The raw output [b, c, h, w], v."""
    h, w = x_t.shape[2:]
    text_ids = torch.zeros(cond["text"].shape[1], 4, device=x_t.device)
    text_ids[:, 3] = torch.arange(len(text_ids), device=x_t.device)
    inputs = {"encoder_hidden_states": cond["text"], "timestep": times, "txt_ids": text_ids}
    inputs |= {"guidance": cond.get("guidance")}
    tokens = network(x_t.flatten(2).mT, **inputs, img_ids=positions(h, w, 4, x_t.device), return_dict=False)[0]
    return tokens.mT.unflatten(2, (h, w))


class Flux2(FlowTextToImage):
    """A condition has `text` [b, tokens, three widths], and `guidance` [b] if the network is told its strength.

    In half of the blocks, one matrix computes attention and feed-forward together: it belongs to the attention group.

    Class attributes:
        layers: the layers of the language model that are read.
    """

    layers: ClassVar[tuple[int, int, int]]
    networks: ClassVar[dict[str, DenoisingNetwork]] = {
        "transformer": DenoisingNetwork(Flux2Transformer2DModel, predict_flux2, middle_feed_forward)
    }
    default_side: ClassVar[int | None] = 64
    time_of_noise: ClassVar[float] = 1.0
    shift: Callable[[Mapping[str, Any], int], float] = staticmethod(shift_of_flux2)

    def _open_encoder(self, classes: Mapping[str, str], encoder: str, dtype: torch.dtype, device: str) -> TextEncoder:
        opened = super()._open_encoder(classes, encoder, dtype, device)
        limit = min(opened.tokenizer.model_max_length, TOKENS)
        return replace(opened, limit=limit, template=self._template(opened.tokenizer))

    @abstractmethod
    def _template(self, tokenizer: Any) -> str:
        """The conversation around a caption, with {} for the caption."""

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """The three layers side by side, padded to the model's own length."""
        states, _ = self.text_encoders["text_encoder"].layers(texts, self.layers)
        config: Any = self.network.config
        if not config["guidance_embeds"]:
            return {"text": torch.cat(states, -1)}
        guidance = torch.full((len(texts),), GUIDANCE, device=self.device, dtype=self.dtype)
        return {"text": torch.cat(states, -1), "guidance": guidance}


class Flux2Klein(Flux2):
    """With Qwen 3."""

    layers: ClassVar[tuple[int, int, int]] = (9, 18, 27)

    def _template(self, tokenizer: Any) -> str:
        message = [{"role": "user", "content": "{}"}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return tokenizer.apply_chat_template(message, **options)


class Flux2Dev(Flux2):
    """With Mistral 3, after the pipeline's own instruction."""

    layers: ClassVar[tuple[int, int, int]] = (10, 20, 30)

    def _template(self, tokenizer: Any) -> str:
        """Without the start of text if the tokenizer adds it."""
        conversation = [("system", SYSTEM_MESSAGE), ("user", "{}")]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in conversation]
        template = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        adds_start = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        return template.removeprefix(tokenizer.bos_token or "") if adds_start else template

    def encode(self, texts: Sequence[str]) -> Condition:
        """As of `Flux2`, without the mark of a picture, which the pipeline removes."""
        return super().encode([text.replace("[IMG]", "") for text in texts])


PIPELINES: dict[str, type[Denoiser]] = {"Flux2Pipeline": Flux2Dev, "Flux2KleinPipeline": Flux2Klein}
