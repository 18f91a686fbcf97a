"""One file per model family; `load` opens the family that a pipeline directory belongs to."""

from collections.abc import Sequence

import torch

from concept_trak.denoiser import Denoiser

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load(
    path: str,
    parameters: str = "all",
    negative: str = "empty",
    combinations: Sequence[str] = (),
    device: str = "cpu",
    precision: str = "float32",
) -> Denoiser:
    """The pipeline directory at `path` as a `Denoiser` (see `text_to_image.TextToImage` for the arguments)."""
    from concept_trak.models.text_to_image import (
        TextToImage,
    )  # diffusers takes seconds to import: only who loads a model pays

    return TextToImage(path, parameters, negative, combinations, device, PRECISIONS[precision])
