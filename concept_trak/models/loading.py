"""One part of a pipeline directory, loaded by its library: safetensors only, no code, and no weight left random."""

import logging
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from concept_trak import UserError
from concept_trak.data.text import one_line
from concept_trak.models.pipeline_folder import part_files, read_json
from concept_trak.models.quantized_linear import QuantizedLinear
from concept_trak.models.quantized_part import load_quantized, quantization_of

log = logging.getLogger(__name__)
# A progress bar for every part on each of a hundred workers would bury a run's own messages.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()
IGNORED = ("position_ids",)
"""Tensors that older files hold and the libraries compute: leaving them out changes nothing."""


def from_folder(part_class: Any, folder: Path, **options: Any) -> Any:
    """`part_class.from_pretrained(folder)`, with the library's failure as one message.

    Raises:
        UserError: a file is missing, is cut off, is nested too deep, or does not fit the class.
    """
    try:
        with warnings.catch_warnings():
            # Of diffusers about its own code: its network of Chroma uses a class of its older files.
            warnings.filterwarnings("ignore", r"`\w+` is deprecated", FutureWarning)
            return part_class.from_pretrained(folder, local_files_only=True, **options)
    except ImportError as error:  # a library that only this tokenizer needs
        raise UserError(f"{folder} cannot be loaded as a {part_class.__name__}: {error}") from error
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be loaded as a {part_class.__name__} ({one_line(error)}); save the pipeline again"
        ) from error


def load_settings(part_class: Any, path: Path, part: str) -> Any:
    """A tokenizer or a scheduler: a part without weights.

    Raises:
        UserError: it cannot be read.
    """
    for name in part_files(path, part).settings:
        if name.endswith(".json"):
            read_json(path / part / name)  # refuses what would end the library's reader in a RecursionError
    options = {"trust_remote_code": False} if part.startswith("tokenizer") else {}
    return from_folder(part_class, path / part, **options)


def load_part(part_class: Any, path: Path, part: str, dtype: torch.dtype, device: str) -> Any:
    """A part with weights, in evaluation mode.

    Args:
        part_class: a model class of diffusers or transformers.
        path: the pipeline directory.
        part: the part's folder in it.
        dtype, device: the precision and the place of its weights.

    Raises:
        UserError: there are no safetensors, they do not fit, some are missing, or a weight is not finite.
    """
    folder, files = path / part, part_files(path, part)
    if quantization_of(folder):
        weights = [folder / name for name in files.weights if name.endswith(".safetensors")]
        return ready(load_quantized(part_class, folder, weights), str(folder), dtype, device)
    for name in files.weights:
        if name.endswith(".safetensors"):
            require_floats(folder / name)
    # Weights are read straight into memory. diffusers refuses that for networks of which it keeps a part in float32.
    own_way = getattr(part_class, "_keep_in_fp32_modules", None) is not None
    options: dict[str, Any] = {"low_cpu_mem_usage": own_way} if issubclass(part_class, ModelMixin) else {}
    model, report = from_folder(
        part_class, folder, use_safetensors=True, torch_dtype=dtype, output_loading_info=True, variant=files.variant,
        **options,
    )  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder} lacks {len(missing)} weights ({missing[0]}, ...), which would be random; save the pipeline again"
        )
    if unused := sorted(key for key in report["unexpected_keys"] if not key.endswith(IGNORED)):
        if any(key.startswith("encoder_hid_proj.") or "_ip." in key for key in unused):
            raise UserError(
                f"{folder} holds an IP-Adapter, whose condition is a reference picture; it is read only on Stable "
                "Diffusion 1.x and XL without a ControlNet. Save the pipeline without it (`unload_ip_adapter`)"
            )
        log.warning(
            "%s: %d tensors are left out, the model has no place for them (%s, ...)", folder, len(unused), unused[0]
        )
    return ready(model, str(folder), dtype, device)


def ready(model: nn.Module, name: str, dtype: torch.dtype, device: str) -> Any:
    """A model in evaluation mode, in its place and precision.

    Args:
        name: its folder or file, for messages.

    Raises:
        UserError: a weight is not finite.
    """
    # diffusers leaves some networks in the precision of their file. Its own `to` warns of every cast.
    model = nn.Module.to(model, device, dtype).eval()
    require_finite(model, name)
    return model


def require_floats(file: Path) -> None:
    """Refuse weights that are whole numbers: a library would take them for those of the network, without their scales.

    Raises:
        UserError: naming the first such tensor; or the file cannot be read.
    """
    try:
        with safe_open(file, "pt") as tensors:
            kinds = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is no whole safetensors file ({one_line(error)}); save the pipeline again") from error
    if wrong := [
        name for name, kind in kinds.items() if kind in ("I8", "U8", "I4", "U4") and not name.endswith(IGNORED)
    ]:
        raise UserError(
            f"{file}: {wrong[0]} is {kinds[wrong[0]]}, so the weights are quantized, and config.json has no "
            "quantization_config with their scales; save the pipeline again"
        )


def require_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that are NaN or infinite, in the precision they run in.

    Raises:
        UserError: naming the first such tensor.
    """
    quantized = ((f"{n}.weight", m.weight) for n, m in model.named_modules() if isinstance(m, QuantizedLinear))
    for tensor_name, value in chain(model.state_dict().items(), quantized):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            hint = ": set model.precision=float32 or bfloat16" if value.dtype == torch.float16 else ""
            raise UserError(
                f"{name}: {tensor_name} has weights that are not finite in {value.dtype}{hint}; expected a file whose "
                "training did not diverge"
            )
