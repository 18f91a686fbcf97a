"""One file per model family; `load_model` opens a model with the family of its pipeline directory.

A family's file has a table `PIPELINES`: the pipeline classes (`_class_name` of model_index.json) that it opens, each
with its `Denoiser`. A new family needs no other change.
"""

import logging
import pkgutil
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


UNOPENED = {
    "SanaSprintPipeline": "its network jumps to the end of a path (a consistency model), so its output at a state is "
    "not the noise there, which all losses here are written in; set model.path to the SANA that it was distilled from",
}
"""Why no family opens a pipeline class, and the remedy."""


def _is_news(record: logging.LogRecord) -> bool:
    """False for the log line about image processors without torchvision: those with PIL do the same."""
    return "requires torchvision (not installed); falling back" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_is_news)


def families() -> dict[str, type]:
    """The `Denoiser` of every pipeline class that a file here opens."""
    # Imported only when a model is opened, because importing diffusers takes seconds.
    files = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {name: family for file in files for name, family in getattr(file, "PIPELINES", {}).items()}


def load_model(
    path: str,
    *,
    parameters: str = "all",
    negative: str = "empty",
    combinations: Sequence[str] = (),
    device: str | Sequence[str] = "cpu",
    precision: str = "float32",
    weights: str = "",
    lora: str = "",
    embeddings: Sequence[str] = (),
    resolution: int = 0,
    frames: int = 0,
    offload: str = "auto",
) -> Denoiser:
    """Open a model.

    Args:
        path: a diffusers pipeline directory, a Hub id, an address such as `s3://bucket/model`, or an original
            checkpoint.
        parameters: which parameters have gradients: a group (`all`, `attention`, `lora`, ...) or a pattern of names.
        negative: the model's negative: `empty`, or `other_label` for models that were not trained on an empty
            condition.
        combinations: for `other_label`, the captions or classes to draw from.
        device: `cpu`, `cuda`, ..., or several such as `["cuda:0", "cuda:1"]`, among which the denoising network is
            divided. Its weights are then read into the host's memory first.
        precision: the type of the weights of every network, one of `PRECISIONS`.
        resolution: the side of the images in pixels; 0 is the model's own.
        frames: of a video model, the frames of a clip; 0 is a single image.
        offload: whether the text encoders and the VAE are on a GPU only while they encode: `auto` (if they would take
            more than a fifth of its memory), `always` or `never`.
        weights, lora, embeddings: files on top of the directory (see `adapters.Adapters`), local or remote.

    Returns:
        The model as a `Denoiser`: it maps a state (x_t [b, c, h, w], t in 0 ... 999, a condition) to (x_0, eps), both
        [b, c, h, w]; of a video model [b, c, f, h, w].

    Raises:
        UserError: the model cannot be reached, no family opens it, or one of its files is refused.
    """
    folder, family = _pipeline(path)
    adapters = _adapters(weights, lora, embeddings)
    open_on = partial(
        family, str(folder), parameters, negative, combinations,
        dtype=PRECISIONS[precision], adapters=adapters, resolution=resolution, frames=frames,
    )  # fmt: skip
    if isinstance(device, str):
        return open_on(device=device, offload=offload)
    model = open_on(device="cpu", offload="never")  # until `divide` knows the devices
    model.divide(device, offload)
    return model


def _adapters(weights: str, lora: str, embeddings: Sequence[str]) -> Any:
    """The `Adapters` of these files, which are on this machine afterwards."""
    from concept_trak.models.adapters import Adapters
    from concept_trak.models.location import local_path

    return Adapters(
        weights=weights and str(local_path(weights, "model.weights")),
        lora=lora and str(local_path(lora, "model.lora")),
        embeddings=tuple(str(local_path(file, "model.embeddings")) for file in embeddings),
    )


def _pipeline(path: str) -> tuple[Path, Any]:
    """The pipeline directory of a model on this machine, and the `Denoiser` class that opens it."""
    from concept_trak.models.ip_adapter import with_adapter
    from concept_trak.models.location import local_path
    from concept_trak.models.original_checkpoint import pipeline_of_checkpoint
    from concept_trak.models.pipeline_folder import pipeline_class

    classes, folder = families(), local_path(path, "model.path")
    if folder.is_file():
        folder = pipeline_of_checkpoint(folder, classes)
    name = pipeline_class(folder)
    if name not in classes:
        raise UserError(
            f"model.path={path!r} is a {name}, which no family here opens; "
            + UNOPENED.get(
                name,
                f"expected one of {', '.join(sorted(classes))}. Save the model as one of these, or add a file to "
                "concept_trak/models/.",
            )
        )
    return folder, with_adapter(classes[name], folder)
