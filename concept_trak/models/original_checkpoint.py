"""A single original checkpoint (`v1-5-pruned.safetensors`), converted to a pipeline directory once per node.

The file has the weights of all parts under the names of the original code, and no configuration. diffusers knows which
published pipeline has the configuration, and it must be in this machine's Hub cache, or the Hub must be reachable. The
conversion is kept in the cache under the file's sha256.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import SafetensorError
from safetensors.torch import load_file

from concept_trak import UserError
from concept_trak.models.location import cached_folder, hub_folder
from concept_trak.models.pipeline_folder import pipeline_class
from concept_trak.store.identity import file_digest

ORIGINAL_KEYS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
"""How the tensors of an original checkpoint begin."""
UNUSED_PARTS: Mapping[str, Any] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}


def is_original(keys: Iterable[str]) -> bool:
    return any(key.startswith(ORIGINAL_KEYS) for key in keys)


def conversion_command(checkpoint: str, base: str) -> str:
    """The command that makes a pipeline directory of an original checkpoint without a network."""
    return (
        'python -c "from diffusers import StableDiffusionPipeline as P; '
        f"P.from_single_file('{checkpoint}', config='{base}').save_pretrained('converted')\" "
        "(StableDiffusionXLPipeline or StableDiffusion3Pipeline for these), then set model.path=converted"
    )


def pipeline_of_checkpoint(checkpoint: Path, classes: Iterable[str]) -> Path:
    """The pipeline directory of an original checkpoint, which is converted unless the cache has it.

    Args:
        checkpoint: the .safetensors file.
        classes: the pipeline classes that can be opened.

    Raises:
        UserError: it is not such a checkpoint, its configuration cannot be found, or no family opens its pipeline.
    """
    base = _configuration(checkpoint)
    name = pipeline_class(base)
    if name not in classes:
        raise UserError(
            f"model.path={str(checkpoint)!r} is an original checkpoint of a {name}, which no family here opens; "
            f"expected one of {', '.join(sorted(classes))}"
        )

    def convert(folder: Path) -> None:
        kind: Any = getattr(diffusers, name)
        parts = {part: None for part in UNUSED_PARTS if part in kind._optional_components}
        try:
            pipeline = kind.from_single_file(str(checkpoint), config=str(base), local_files_only=True, **parts)
        except (OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"model.path={str(checkpoint)!r} cannot be converted to a {name} with the configuration of {base} "
                f"({str(error)[:300]}); convert it with another base: {conversion_command(str(checkpoint), '<base>')}"
            ) from error
        pipeline.save_pretrained(folder)

    return cached_folder(f"checkpoint-{file_digest(checkpoint)[:32]}", convert)


def _configuration(checkpoint: Path) -> Path:
    """The directory with the configuration that belongs to a checkpoint, from the Hub or its cache."""
    name = f"model.path={str(checkpoint)!r}"
    if checkpoint.suffix != ".safetensors":
        raise UserError(
            f"{name} is no .safetensors file; expected a pipeline directory or an original checkpoint in safetensors: "
            "pickled weights can run code and are never read"
        )
    try:
        state = load_file(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{name} cannot be read ({error}); expected safetensors") from None
    if not is_original(state):
        raise UserError(
            f"{name} is one file and no original checkpoint (it has tensors such as {next(iter(state), 'none')}); "
            "expected a pipeline directory. The weights of one network are given as model.weights, an adapter as "
            "model.lora, each beside the model.path of the base"
        )
    base = fetch_diffusers_config(state)["pretrained_model_name_or_path"]
    try:
        return hub_folder(base, settings_only=True)
    except UserError as error:
        raise UserError(
            f"{name} is an original checkpoint, whose configuration is that of {base}: {error}. Or convert it with a "
            f"directory that has the same configuration: {conversion_command(str(checkpoint), '<base>')}"
        ) from error
