"""A diffusers pipeline directory: its model_index.json, the class of each part, and the files that each part loads.

Only these files are opened, and only they are part of a model's identity. Classes come from a fixed list, so a
directory cannot name code to run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concept_trak import UserError

SCHEDULERS = frozenset(
    """DDIMInverseScheduler DDIMParallelScheduler DDIMScheduler DDPMParallelScheduler DDPMScheduler
    DEISMultistepScheduler DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler
    EulerAncestralDiscreteScheduler EulerDiscreteScheduler FlowMatchEulerDiscreteScheduler HeunDiscreteScheduler
    KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler LCMScheduler LMSDiscreteScheduler PNDMScheduler
    SASolverScheduler TCDScheduler UniPCMultistepScheduler""".split()  # noqa: SIM905
)
CLASSES: Mapping[str, frozenset[str]] = {
    "unet": frozenset({"UNet2DConditionModel", "UNet2DModel"}),
    "transformer": frozenset(
        """ChromaTransformer2DModel DiTTransformer2DModel Flux2Transformer2DModel FluxTransformer2DModel
        Lumina2Transformer2DModel PixArtTransformer2DModel QwenImageTransformer2DModel SD3Transformer2DModel
        SanaTransformer2DModel Transformer2DModel WanTransformer3DModel ZImageTransformer2DModel""".split()  # noqa: SIM905
    ),
    "controlnet": frozenset({"ControlNetModel", "FluxControlNetModel", "SD3ControlNetModel"}),
    "image_encoder": frozenset({"CLIPVisionModelWithProjection", "SiglipVisionModel"}),
    "feature_extractor": frozenset(
        """CLIPFeatureExtractor CLIPImageProcessor CLIPImageProcessorFast CLIPImageProcessorPil SiglipImageProcessor
        SiglipImageProcessorFast SiglipImageProcessorPil""".split()  # noqa: SIM905
    ),
    "vae": frozenset(
        """AsymmetricAutoencoderKL AutoencoderDC AutoencoderKL AutoencoderKLFlux2 AutoencoderKLQwenImage
        AutoencoderKLWan AutoencoderTiny VQModel""".split()  # noqa: SIM905
    ),
    "scheduler": SCHEDULERS,
    "text_encoder": frozenset(
        """CLIPTextModel CLIPTextModelWithProjection Gemma2Model Gemma2PreTrainedModel Mistral3ForConditionalGeneration
        Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3Model T5EncoderModel
        UMT5EncoderModel""".split()  # noqa: SIM905
    ),
    "tokenizer": frozenset(
        """CLIPTokenizer CLIPTokenizerFast GemmaTokenizer GemmaTokenizerFast PixtralProcessor Qwen2Tokenizer
        Qwen2TokenizerFast T5Tokenizer T5TokenizerFast""".split()  # noqa: SIM905
    ),
}
"""The classes that a part may have, by the part's name without its number."""
OF_ADAPTERS = ("feature_extractor", "image_encoder")
"""Parts that only an IP-Adapter reads."""
WEIGHTS = {"unet": "diffusion_pytorch_model", "transformer": "diffusion_pytorch_model",
           "controlnet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
           "text_encoder": "model", "image_encoder": "model"}  # fmt: skip
"""How the weight files of a part begin; the other parts have none."""
SETTINGS = (".json", ".txt", ".model", ".jinja")
"""Endings of the files that are not weights: configurations, vocabularies, and templates of a conversation."""


def pipeline_settings(path: Path, needed: tuple[str, ...] = ("a denoising network", "a scheduler")) -> dict[str, Any]:
    """The content of model_index.json.

    Args:
        path: the pipeline directory.
        needed: what the directory should have, for the message.

    Raises:
        UserError: the file is missing, or is not a JSON mapping.
    """
    if not (path / "model_index.json").is_file():
        what = "has no model_index.json" if path.is_dir() else "does not exist"
        raise UserError(
            f"model.path={str(path)!r} {what}; expected a diffusers pipeline directory with {', '.join(needed)}"
        )
    return read_json(path / "model_index.json")


def pipeline_class(path: Path) -> str:
    return str(pipeline_settings(path).get("_class_name", "pipeline without a _class_name"))


def part_classes(path: Path, needed: tuple[str, ...]) -> dict[str, str]:
    """The class name of every part that model_index.json lists.

    Args:
        path: the pipeline directory.
        needed: parts that must be there; `unet|transformer` needs one of the two.

    Raises:
        UserError: a needed part is missing, or a part is of a class that is not in `CLASSES`.
    """
    settings = pipeline_settings(path, needed)
    parts = {part: str(entry[1]) for part, entry in settings.items() if isinstance(entry, list) and entry[1:] and
             entry[1] is not None}  # fmt: skip
    missing = [n for n in needed if not any(p in parts and any((path / p).glob("*")) for p in n.split("|"))]
    if missing:
        raise UserError(f"model.path={str(path)!r} lacks {', '.join(missing)}; it needs {', '.join(needed)}")
    unread = () if "image_encoder" in needed else OF_ADAPTERS
    for part in parts:
        if role(part) in CLASSES and part not in unread and (path / part).is_dir():
            _require_known_class(parts, part)
    return parts


def role(part: str) -> str:
    """`text_encoder` of `text_encoder_2`."""
    return re.sub(r"_\d+$", "", part)


def class_of_part(library: Any, index: Mapping[str, str], part: str) -> Any:
    """The class of a part, from the library (diffusers or transformers) that it belongs to.

    Raises:
        UserError: the class is not in `CLASSES`, or the installed library does not have it.
    """
    _require_known_class(index, part)
    if not hasattr(library, index[part]):
        raise UserError(
            f"model_index.json names {index[part]} as the class of {part}, which {library.__name__} "
            f"{library.__version__} does not have; install the version that the pipeline was saved with, or save it "
            "again"
        )
    return getattr(library, index[part])


def _require_known_class(index: Mapping[str, str], part: str) -> None:
    if index[part] not in CLASSES[role(part)]:
        raise UserError(
            f"model_index.json names {index[part]} as the class of {part}; expected one of "
            f"{', '.join(sorted(CLASSES[role(part)]))}. Save the pipeline with one of these: other classes are never "
            "loaded"
        )


@dataclass(frozen=True)
class PartFiles:
    """The files that a part loads, as names in its folder; `variant` is `fp16` where the weights are named so."""

    settings: tuple[str, ...]
    weights: tuple[str, ...] = ()
    variant: str | None = None

    @property
    def names(self) -> list[str]:
        return sorted({*self.settings, *self.weights})


def choose_files(part: str, names: Iterable[str], folder: str = "") -> PartFiles:
    """The files of a part that are loaded, out of all names in its folder.

    Weights without a variant are preferred. With variants alone (`model.fp16.safetensors`), there must be one variant.

    Args:
        part: its name in model_index.json.
        names: file names, without the folder.
        folder: the folder, for messages.

    Raises:
        UserError: there are no safetensors, or several variants and no plain weights.
    """
    visible = sorted(name for name in names if not name.startswith("."))
    settings = tuple(n for n in visible if n.endswith(SETTINGS) and ".index." not in n)
    if role(part) not in WEIGHTS:
        return PartFiles(settings)
    stem = WEIGHTS[role(part)]
    pattern = re.compile(rf"{stem}(?:\.(?P<variant>[\w]+))?(?P<shard>-\d+-of-\d+)?\.safetensors")
    matches = [match for match in map(pattern.fullmatch, visible) if match]
    if not matches:
        raise UserError(
            f"{folder or part} holds no .safetensors weights named {stem}.safetensors, {stem}.fp16.safetensors or "
            "shards of these; convert them (`save_pretrained(safe_serialization=True)`): pickled weights can run code "
            "and are never read"
        )
    variants = sorted({match["variant"] or "" for match in matches})
    if "" not in variants and len(variants) > 1:
        raise UserError(
            f"{folder or part} holds weights of the variants {', '.join(variants)}, and none without a variant; keep "
            "one"
        )
    variant = variants[0]
    weights = {match.string for match in matches if (match["variant"] or "") == variant}
    index = {
        n for n in visible if n.startswith(f"{stem}.") and ".index." in n and (f".{variant}." in n) == bool(variant)
    }
    weights = _weights_read(weights, index, whole_first=stem == "model")
    return PartFiles(("config.json",) if "config.json" in visible else (), tuple(sorted(weights)), variant or None)


def _weights_read(weights: set[str], index: set[str], whole_first: bool) -> set[str]:
    """The weight files that a library reads out of a whole file, shards and the shards' index.

    If there are a whole file and shards, transformers reads the whole file (`whole_first`), and diffusers the shards.
    """
    shards = {name for name in weights if "-of-" in name}
    sharded = bool(shards and index) and (not whole_first or shards == weights)
    return shards | index if sharded else weights - shards


def part_files(path: Path, part: str) -> PartFiles:
    """The files that a part of the directory at `path` loads, each of them a regular file.

    Raises:
        UserError: there are no weights, or a name is a pipe or a device.
    """
    entries = list((path / part).iterdir()) if (path / part).is_dir() else []
    for entry in entries:
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise UserError(f"{entry} is no regular file (a pipe, a socket or a device); remove it")
    return choose_files(part, [entry.name for entry in entries if entry.is_file()], str(path / part))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON mapping from a regular file.

    Raises:
        UserError: the file is missing, is no regular file, is nested too deep, or is not a JSON mapping.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing, or is no regular file; save the pipeline again")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise TypeError(f"a {type(value).__name__}")
        return value
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a JSON mapping ({error}); save the pipeline again") from None
