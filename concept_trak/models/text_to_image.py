"""Text-to-image pipelines as diffusers saves them: a UNet conditioned on a text encoder, with or without a VAE.

The directory is the model: `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/` and, for latent models, `vae/`. Only
safetensors are read. alpha and sigma come from the pipeline's scheduler.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from concept_trak.denoiser import Condition, Denoiser, Prediction, attributable
from concept_trak.store.identity import file_digest

# Bars for each of a hundred workers would bury what a run has to say.
transformers.utils.logging.disable_progress_bar()
diffusers.utils.logging.disable_progress_bar()

_NEEDED = ("unet", "text_encoder", "tokenizer", "scheduler")


class TextToImage(Denoiser):
    """A pipeline directory as a denoiser.

    Args:
        path: the directory.
        parameters: a group of `denoiser.GROUPS` or a pattern of names in the UNet.
        negative: `empty`, the encoding of "", for models trained with dropped captions; else `other_label`.
        combinations: for `other_label`, the captions to draw another one from.
        device, dtype: where and in what the networks run; the VAE and the text encoder alike.

    Raises:
        ValueError: the directory is no such pipeline, its weights are not safetensors, or a setting does not fit it.
    """

    def __init__(
        self,
        path: str,
        parameters: str = "all",
        negative: str = "empty",
        combinations: Sequence[str] = (),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.path, index = Path(path), _index(Path(path))
        self.negative, self.combinations = negative, tuple(combinations)
        self.network = unet = _load(UNet2DConditionModel, self.path / "unet", dtype, device)
        self.parameters = attributable(self.network, parameters)
        self.tokenizer = _read(_kind(transformers, index, "tokenizer"), self.path / "tokenizer")
        text_encoder = _kind(transformers, index, "text_encoder")
        self.text_encoder = _load(text_encoder, self.path / "text_encoder", dtype, device).requires_grad_(False)
        self.vae = None
        if "vae" in index:
            vae = _load(_kind(diffusers, index, "vae"), self.path / "vae", dtype, device)
            self.vae = vae.requires_grad_(False)
        self._read_schedule(_read(_kind(diffusers, index, "scheduler"), self.path / "scheduler"))
        side = unet.config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        self.shape = (unet.config["in_channels"], height, width)

    def _read_schedule(self, scheduler: Any) -> None:
        kind, kept = scheduler.config.get("prediction_type", "epsilon"), getattr(scheduler, "alphas_cumprod", None)
        if kept is None or len(kept) != 1000 or kind not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"{self.path}/scheduler is a {type(scheduler).__name__} with prediction_type={kind!r}; expected 1000 "
                "steps of alphas_cumprod and prediction_type epsilon or v_prediction. Save the pipeline with a DDIM or "
                "DDPM scheduler."
            )
        self.alpha, self.sigma = kept.double().sqrt(), (1 - kept.double()).sqrt()
        self.prediction_type = kind

    def __call__(self, x_t: Float[Tensor, "b c h w"], t: int, cond: Condition) -> Prediction:
        times = torch.full((len(x_t),), t, device=x_t.device)
        raw = self.network(x_t, times, encoder_hidden_states=cond["text"], return_dict=False)[0]
        alpha, sigma = self.alpha[t].item(), self.sigma[t].item()
        if self.prediction_type == "v_prediction":
            # In eps units a loss on v is weighted by alpha^2: eps = sigma x_t + alpha v.
            return Prediction(alpha * x_t - sigma * raw, sigma * x_t + alpha * raw)
        return Prediction((x_t - sigma * raw) / alpha, raw)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """Text encodings, padded to the model's own length.

        There is an attention mask only where the text encoder's configuration asks for one.
        """
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        asks = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if asks else None
        return {"text": self.text_encoder(tokens.input_ids, attention_mask=mask)[0]}

    @torch.no_grad()
    def to_latent(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """The mode of the VAE's posterior, (mode - shift) * scaling; the pixels themselves without a VAE."""
        pixels = pixels.to(self.device, self.dtype)
        if self.vae is None:
            return pixels
        mode = self.vae.encode(pixels).latent_dist.mode()
        return (mode - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def to_pixels(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        if self.vae is None:
            return x_0
        shift = self.vae.config.get("shift_factor") or 0.0
        return self.vae.decode(x_0 / self.vae.config["scaling_factor"] + shift).sample

    @property
    def resolution(self) -> int:
        factor = 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.shape[-1] * factor

    def identity(self) -> dict[str, str]:
        """sha256 of every file that moves a feature, by its name in the directory, and of the noise process."""
        names = [p for part in (*_NEEDED[:3], "vae") for p in sorted((self.path / part).rglob("*")) if p.is_file()]
        digests = {p.relative_to(self.path).as_posix(): file_digest(p) for p in names}
        schedule = self.prediction_type.encode() + self.alpha.numpy().tobytes()
        return {**digests, "schedule": hashlib.sha256(schedule).hexdigest()}


def _index(path: Path) -> dict[str, str]:
    """The class of every part that model_index.json names, once it is sure that none is missing."""
    if not (path / "model_index.json").is_file():
        what = "has no model_index.json" if path.is_dir() else "does not exist"
        raise ValueError(
            f"model.path={str(path)!r} {what}; expected a diffusers pipeline directory with {', '.join(_NEEDED)}"
        )
    try:
        index = dict(json.loads((path / "model_index.json").read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}/model_index.json is not a JSON mapping ({error}); save the pipeline again") from None
    parts = {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[1] is not None}
    missing = [part for part in _NEEDED if part not in parts or not any((path / part).glob("*"))]
    if missing:
        raise ValueError(
            f"model.path={str(path)!r} lacks {', '.join(missing)}; a text-to-image pipeline has {', '.join(_NEEDED)}"
        )
    return parts


def _kind(library: Any, index: dict[str, str], part: str) -> Any:
    if not hasattr(library, index[part]):
        raise ValueError(
            f"model_index.json says that {part} is a {index[part]}, which {library.__name__} {library.__version__} "
            "does not have; install the version that the pipeline was saved with, or save it again"
        )
    return getattr(library, index[part])


def _read(kind: Any, path: Path, **ways: Any) -> Any:
    try:
        return kind.from_pretrained(path, **ways)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # a file is missing, cut off, or does not fit
        raise ValueError(f"{path} cannot be loaded as a {kind.__name__} ({error}); save the pipeline again") from error


def _load(kind: Any, path: Path, dtype: torch.dtype, device: str) -> Any:
    if not list(path.glob("*.safetensors")):
        raise ValueError(
            f"{path} holds no .safetensors weights; convert them (`save_pretrained(safe_serialization=True)`): pickled "
            "weights can run code and are never read"
        )
    # Weights are read straight into memory: the low-memory way of diffusers needs one more package, and warns without.
    ways = {"low_cpu_mem_usage": False} if issubclass(kind, ModelMixin) else {}
    model, said = _read(kind, path, use_safetensors=True, torch_dtype=dtype, output_loading_info=True, **ways)
    if absent := sorted(said["missing_keys"]):
        raise ValueError(
            f"{path} lacks {len(absent)} weights ({absent[0]}, ...), which would be random; save the pipeline again"
        )
    return model.to(device).eval()
