"""CLIP's image encoder with the preparation of pictures of its pipeline: a picture as one vector."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from concept_trak.data.image import to_image
from concept_trak.models.loading import load_part, load_settings

ENCODER, PREPARATION = "image_encoder", "feature_extractor"
"""The parts of a pipeline directory."""


@dataclass(frozen=True)
class ImageEncoder:
    """A frozen image encoder.

    Attributes:
        prepare: scales, crops and normalizes pictures, on the CPU by PIL, so that every machine has the same numbers.
        model: of transformers.
        on_device: the context in which the model's weights are where they are used.
    """

    prepare: Any
    model: Any
    on_device: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    @torch.no_grad()
    def embed(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b numbers"]:
        """The projected embeddings of pictures in [-1, 1], as a pipeline computes them from files of 8 bits."""
        prepared = self.prepare([to_image(picture) for picture in pixels], return_tensors="pt").pixel_values
        with self.on_device():
            return self.model(prepared.to(self.model.device, self.model.dtype)).image_embeds


def open_image_encoder(path: Path, dtype: torch.dtype, device: str) -> ImageEncoder:
    """The image encoder of a pipeline directory, and its preparation; without one, CLIP's own at the encoder's size.

    Args:
        path: the pipeline directory.
        dtype, device: the precision and the place of its weights.

    Raises:
        UserError: a part cannot be read.
    """
    model = load_part(CLIPVisionModelWithProjection, path, ENCODER, dtype, device)
    if (path / PREPARATION).is_dir():
        prepare = load_settings(CLIPImageProcessorPil, path, PREPARATION)
    else:
        side = model.config.image_size
        prepare = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return ImageEncoder(prepare, model.requires_grad_(False))
