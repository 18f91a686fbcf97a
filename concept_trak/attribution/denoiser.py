"""The interface to a diffusion model: at a state it predicts the clean image and the noise.

    x_t = alpha_t x_0 + sigma_t eps,        eps_theta(x_t, t, c): the prediction that every loss is written in

Shapes: b samples, c h w the space that the model denoises in (pixels, or latents of a VAE); of a video model c f h w,
with f frames of latents. Only a family and the data depend on the number of axes. Times are integers 0 ... 999.
Every model has a negative, which rewards compare a condition with, and conditions that it draws without a prompt.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.numerics import choice

# What the model is conditioned on: named tensors with the samples first. Text models have {"text": [b, tokens, width]}.
Condition = dict[str, Tensor]
Encode = Callable[[Sequence[str]], Condition]
Conditioning = Literal["text", "class", "none"]
# Groups of parameters by name; any other value of `model.parameters` is a pattern that is searched in the names of
# parameters. A transformer block calls attention attn1 (to itself) and attn2 (to the text); UNets without texts have no
# such number.
GROUPS = {
    "all": "",
    "attention": r"\battn\d*\.|\battentions\.\d+\.to_",
    "cross_attention": r"\battn2\.",
    "self_attention_out": r"\battn1\.to_out\.|\battentions\.\d+\.to_out\.",
    "lora": r"\.(lora|hada|lokr)_",  # the matrices of a LoRA, a LoHa or a LoKr
}

ROOT = "(network)"
"""The layer of the parameters that the network itself owns."""


class Prediction(NamedTuple):
    """The prediction at a state: x_0 and eps, both affine in the network's raw output."""

    x_0: Float[Tensor, "b c *space"]
    eps: Float[Tensor, "b c *space"]


class Denoiser(ABC):
    """A diffusion model: its prediction, its noise process and its encoders. One subclass per family, in `models/`.

    Attributes:
        network: the module with the attributable parameters; everything else is frozen.
        middle: the module halfway through the network, whose output [b, ...] represents an image.
        alpha, sigma: float64 [1000], the noise process, so that x_t = alpha[t] x_0 + sigma[t] eps.
        shape: (c, h, w) of x_t, of a video model (c, f, h, w).
        parameters: the attributable parameters by name.
        groups: the pattern of each group of parameters, by the group's name.
        negative: `empty` or `other_label`, the model's own c-minus (see `negatives`).
        combinations: the conditions that `other_label` draws from, as texts.
        takes_image: whether a condition has parts of a conditioning image beside those of a text (`encode_image`).
        own_image: whether a sample without a conditioning image is conditioned on its own image.
    """

    groups: ClassVar[Mapping[str, str]] = GROUPS
    takes_image: ClassVar[bool] = False
    own_image: ClassVar[bool] = False

    network: nn.Module
    middle: nn.Module
    alpha: Float[Tensor, " times"]
    sigma: Float[Tensor, " times"]
    shape: tuple[int, ...]
    parameters: dict[str, nn.Parameter]
    negative: str = "empty"
    combinations: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, x_t: Float[Tensor, "b c *space"], t: int, cond: Condition) -> Prediction:
        """The prediction at (x_t, t, cond), in the precision of x_t whatever the network runs in, never clipped."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Condition:
        """The condition of each text: of a model that takes an image, the parts that texts change."""

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Condition:
        """The parts of a condition that a conditioning image in [-1, 1] makes, the same for every text of a sample."""
        raise NotImplementedError(f"{type(self).__name__} takes no conditioning image")

    def empty_image(self, count: int) -> Condition:
        """The parts that an image makes of the empty condition, for each of `count` samples; {} leaves their own."""
        return {}

    def spelled(self, text: str) -> str:
        """The same spelling for all texts that are one condition, such as the number of a class.

        Raises:
            UserError: the text is not a condition of this model, such as a class that it does not have.
        """
        return text

    def require_whole(self, text: str) -> None:  # noqa: B027
        """Refuse a text that `encode` would cut to the model's length. Captions may be cut, as in training.

        Raises:
            UserError: the model would not read the end of the text.
        """

    @abstractmethod
    def to_latent(self, pixels: Float[Tensor, "b 3 *frames height width"]) -> Float[Tensor, "b c *space"]:
        """Images in [-1, 1] as x_0; a video model also takes clips, [b, 3, frames, height, width]."""

    @abstractmethod
    def to_pixels(self, x_0: Float[Tensor, "b c *space"]) -> Float[Tensor, "b 3 height width"]:
        """x_0 as images, about [-1, 1]; of a clip its first frame."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Digests of everything that distinguishes this model from others: its part of a feature's fingerprint."""

    @property
    def conditioning(self) -> Conditioning:
        """The model's conditions: `text`, `class` (by number or name), or `none`."""
        return "text"

    @property
    def resolution(self) -> int:
        """Side of the images that the model was trained on, in pixels."""
        return self.shape[-1]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def attributable(
    network: nn.Module,
    parameters: str,
    groups: Mapping[str, str] = GROUPS,
    frozen: Collection[nn.Parameter] = frozenset(),
) -> dict[str, nn.Parameter]:
    """The parameters that a group or a pattern selects. Afterwards only they require gradients.

    Args:
        network: the denoising network.
        parameters: the name of a group, or a regular expression that is searched in the names of parameters.
        groups: the pattern of each group.
        frozen: parameters that are never selected: those of a quantized base, beside its adapter's.

    Raises:
        UserError: the pattern is not a regular expression, or matches no parameter; all parameters are frozen.
    """
    network.requires_grad_(False)
    named = {name: p for name, p in network.named_parameters() if p not in frozen}
    if not named:
        raise UserError(
            "the denoising network is quantized, so its weights have no gradients; set model.lora to the adapter that "
            "was trained on it, or model.path to the pipeline without quantization"
        )
    try:
        pattern = re.compile(groups.get(parameters, parameters))
    except re.error as error:
        raise UserError(f"model.parameters={parameters!r} is not a regular expression: {error}") from None
    chosen = {name: p for name, p in named.items() if pattern.search(name)}
    if not chosen:
        examples = ", ".join(list(named)[:: max(1, len(named) // 5)][:5])
        lora = " A LoRA is loaded by model.lora=<file or folder>." if parameters == "lora" else ""
        raise UserError(
            f"model.parameters={parameters!r} matches none of the {len(named)} tensors of the denoising network.{lora} "
            f"It has {_groups_of(named, groups)}; or give a pattern found in names such as: {examples}"
        )
    for name, p in named.items():
        p.requires_grad_(name in chosen)
    return chosen


def _groups_of(named: Mapping[str, nn.Parameter], groups: Mapping[str, str]) -> str:
    """The groups that have parameters, in words: `all (1,234 in 56 tensors), ...`."""
    sizes = {group: [p.numel() for name, p in named.items() if re.search(pattern, name)]
             for group, pattern in groups.items()}  # fmt: skip
    return ", ".join(f"{group} ({sum(n):,} in {len(n)} tensors)" for group, n in sizes.items() if n)


def layer_of(name: str) -> str:
    """The module that owns a parameter, so that its weight and bias are one layer; `ROOT` for the network's own."""
    return name.rpartition(".")[0] or ROOT


def equal_conditions(a: Condition, b: Condition) -> Bool[Tensor, " b"]:
    """Which samples have equal conditions in `a` and `b`."""
    return torch.stack([(a[name] == b[name]).reshape(len(a[name]), -1).all(1) for name in a]).all(0)


def concat_conditions(a: Condition, b: Condition) -> Condition:
    return {name: torch.cat([a[name], b[name]]) for name in a}


def take_rows(cond: Condition, rows: slice) -> Condition:
    return {name: value[rows] for name, value in cond.items()}


def empty_images(denoiser: Denoiser, cond: Condition, texts: Sequence[str]) -> Condition:
    """The conditions of texts, where those of an empty text are the model's empty condition, its image included."""
    rows = [row for row, text in enumerate(texts) if text == ""]
    changed = {name: cond[name].clone() for name in denoiser.empty_image(0)}
    for name, empty in denoiser.empty_image(len(rows)).items():
        changed[name][rows] = empty
    return cond | changed


def blank_condition(denoiser: Denoiser, texts: Sequence[str], size: tuple[int, int] | None = None) -> Condition:
    """The condition of each text, with a black image if the model takes one: for checks and measurements.

    Args:
        size: [height, width] of the image in pixels; None is the model's own.
    """
    cond = denoiser.encode(texts)
    if not denoiser.takes_image:
        return cond
    factor = denoiser.resolution // denoiser.shape[-1]
    height, width = size or (factor * denoiser.shape[-2], denoiser.resolution)
    black = torch.full((len(texts), 3, height, width), -1.0, device=denoiser.device, dtype=denoiser.dtype)
    return cond | denoiser.encode_image(black)


def guided(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int,
    cond: Condition,
    negative: Condition,
    guidance: float,
    seen: Prediction | None = None,
) -> Prediction:
    """Classifier-free guidance, eps_neg + g (eps_c - eps_neg) (Ho and Salimans 2022), the two conditions in one batch.

    x_0 is affine in eps, so it is mixed in the same way. g = 1 is the plain conditional prediction, which needs no
    prediction under the negative.

    Args:
        x_t: [b, c, h, w] at the time t.
        cond, negative: the two conditions of each sample.
        guidance: g.
        seen: the conditional prediction at this state, if it is already known.
    """
    if guidance == 1:
        return seen or denoiser(x_t, t, cond)
    if seen is not None:
        (x_c, e_c), (x_n, e_n) = seen, denoiser(x_t, t, negative)
    else:
        both = denoiser(torch.cat([x_t, x_t]), t, concat_conditions(cond, negative))
        (x_c, x_n), (e_c, e_n) = both.x_0.chunk(2), both.eps.chunk(2)
    return Prediction(x_n + guidance * (x_c - x_n), e_n + guidance * (e_c - e_n))


def negatives(
    denoiser: Denoiser, ids: Sequence[str], texts: Sequence[str], seed: int, turn: int = 0, encode: Encode | None = None
) -> Condition:
    """The model's own negative for each sample: the empty condition, or another combination drawn by (seed, id).

    Args:
        ids, texts: of each sample, its id and its own caption.
        turn: how many combinations further than the drawn one, so that turns 0, 1, ... give different negatives.
        encode: what encodes the texts in place of the model itself.

    Raises:
        UserError: the model has no other combination to draw.
    """
    encode = encode or denoiser.encode
    if denoiser.negative == "empty":
        return encode([""] * len(ids)) | denoiser.empty_image(len(ids))
    others = [[c for c in denoiser.combinations if denoiser.spelled(c) != denoiser.spelled(text)] for text in texts]
    if not all(others):
        raise UserError("model.negative=other_label needs model.combinations with at least two entries to draw from")
    drawn = [
        o[(choice(len(o), seed, sample, "negative") + turn) % len(o)] for sample, o in zip(ids, others, strict=True)
    ]
    return encode(drawn)


def negative_count(denoiser: Denoiser, most: int) -> int:
    """The number of negatives of a sample: 1 if it is empty, else `most`, at most all other combinations."""
    return 1 if denoiser.negative == "empty" else max(1, min(most, len(denoiser.combinations) - 1))


def unprompted_texts(denoiser: Denoiser, ids: Sequence[str], seed: int) -> list[str]:
    """The condition of each sample that is drawn without a prompt: the empty one, or a combination by (seed, id).

    Raises:
        UserError: the model has no empty condition and no combinations.
    """
    if denoiser.negative == "empty":
        return [""] * len(ids)
    combinations = denoiser.combinations
    if not combinations:
        raise UserError("model.negative=other_label needs model.combinations: list captions that the model can draw")
    return [combinations[choice(len(combinations), seed, sample, "condition")] for sample in ids]
