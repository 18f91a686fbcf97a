"""One file per model family; `load` opens the family that a pipeline directory belongs to.

A family's file says in `PIPELINES` which pipeline classes (`_class_name` of model_index.json) it opens and with which
`Denoiser`; nothing else needs to know of it.
"""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from concept_trak.attribution.denoiser import Denoiser

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def families() -> dict[str, type]:
    """The `Denoiser` of every pipeline class that a file here opens."""
    # Imported when a model is opened: diffusers takes seconds to import, and only who loads a model pays.
    files = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {name: family for file in files for name, family in getattr(file, "PIPELINES", {}).items()}


def load(
    path: str,
    parameters: str = "all",
    negative: str = "empty",
    combinations: Sequence[str] = (),
    device: str = "cpu",
    precision: str = "float32",
    weights: str = "",
    lora: str = "",
    embeddings: Sequence[str] = (),
) -> Denoiser:
    """The pipeline directory at `path` as a `Denoiser` (see `pipeline.Pipeline` and `beside.Beside` for the arguments).

    Raises:
        ValueError: no family opens such a pipeline, or its own refuses the directory.
    """
    from concept_trak.models.adapters import Adapters
    from concept_trak.models.loading import pipeline_class

    known, name = families(), pipeline_class(Path(path))
    if name not in known:
        raise ValueError(
            f"model.path={path!r} is a {name}, which no family here opens; expected one of {', '.join(sorted(known))}. "
            "Save the model as one of these, or add a file to concept_trak/models/."
        )
    opened: Any = known[name]
    beside = Adapters(weights, lora, tuple(embeddings))
    return opened(path, parameters, negative, combinations, device, PRECISIONS[precision], beside)
