"""A diffusers pipeline directory, read part by part: safetensors only, every refusal with its remedy."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError

# Bars for each of a hundred workers would bury what a run has to say.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()


def pipeline_settings(path: Path, needed: tuple[str, ...] = ("a denoising network", "a scheduler")) -> dict[str, Any]:
    """model_index.json as it stands; `needed` tells what is expected of the directory.

    Raises:
        ValueError: it is not there, or is no mapping.
    """
    if not (path / "model_index.json").is_file():
        what = "has no model_index.json" if path.is_dir() else "does not exist"
        raise ValueError(
            f"model.path={str(path)!r} {what}; expected a diffusers pipeline directory with {', '.join(needed)}"
        )
    try:
        return dict(json.loads((path / "model_index.json").read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}/model_index.json is not a JSON mapping ({error}); save the pipeline again") from None


def pipeline_class(path: Path) -> str:
    return str(pipeline_settings(path).get("_class_name", "pipeline without a _class_name"))


def part_classes(path: Path, needed: tuple[str, ...]) -> dict[str, str]:
    """The class of every part that model_index.json names, once it is sure that none of `needed` is missing.

    `unet|transformer` needs one of the two.
    """
    settings = pipeline_settings(path, needed)
    parts = {part: entry[1] for part, entry in settings.items() if isinstance(entry, list) and entry[1] is not None}
    missing = [n for n in needed if not any(p in parts and any((path / p).glob("*")) for p in n.split("|"))]
    if missing:
        raise ValueError(f"model.path={str(path)!r} lacks {', '.join(missing)}; it needs {', '.join(needed)}")
    return parts


def class_of_part(library: Any, index: dict[str, str], part: str) -> Any:
    if not hasattr(library, index[part]):
        raise ValueError(
            f"model_index.json says that {part} is a {index[part]}, which {library.__name__} {library.__version__} "
            "does not have; install the version that the pipeline was saved with, or save it again"
        )
    return getattr(library, index[part])


def from_folder(kind: Any, path: Path, **ways: Any) -> Any:
    try:
        return kind.from_pretrained(path, **ways)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # a file is missing, cut off, or does not fit
        raise ValueError(f"{path} cannot be loaded as a {kind.__name__} ({error}); save the pipeline again") from error


def load_part(kind: Any, path: Path, dtype: torch.dtype, device: str) -> Any:
    if not list(path.glob("*.safetensors")):
        raise ValueError(
            f"{path} holds no .safetensors weights; convert them (`save_pretrained(safe_serialization=True)`): pickled "
            "weights can run code and are never read"
        )
    # Weights are read straight into memory: the low-memory way of diffusers needs one more package, and warns without.
    ways = {"low_cpu_mem_usage": False} if issubclass(kind, ModelMixin) else {}
    model, said = from_folder(kind, path, use_safetensors=True, torch_dtype=dtype, output_loading_info=True, **ways)
    if absent := sorted(said["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(absent)} weights ({absent[0]}, ...), which would be random; save the pipeline again"
        )
    # diffusers leaves some networks in the precision of their file; what is right is not cast, which would warn.
    cast = any(p.dtype != dtype for p in model.parameters())
    return (model.to(device, dtype) if cast else model.to(device)).eval()
