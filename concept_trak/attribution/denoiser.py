"""The one interface to a diffusion model: at a state it returns the clean image and the noise it sees.

    x_t = alpha_t x_0 + sigma_t eps,        eps_theta(x_t, t, c): the prediction everything else is written in

Shapes: b samples, c h w the space the model denoises in (pixels, or latents of a VAE). Times are integers 0 ... 999.

The conditions a model knows by itself: what a sample is told from, and what is drawn where nothing is asked.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.numerics import choice

# What the model is conditioned on: named tensors with the samples first. Text models have {"text": [b, tokens, width]}.
Condition = dict[str, Tensor]
Conditioning = Literal["text", "class", "none"]
# Parameters as people think of them; anything else is a pattern searched in the parameter names. Attention is called
# attn1 (to itself) and attn2 (to the text) in a block of a transformer, and stands bare in the UNets without texts.
GROUPS = {
    "all": "",
    "attention": r"\battn\d*\.|\battentions\.\d+\.to_",
    "cross_attention": r"\battn2\.",
    "self_attention_out": r"\battn1\.to_out\.|\battentions\.\d+\.to_out\.",
    "lora": r"\.(lora|hada|lokr)_",  # the matrices of a LoRA, a LoHa or a LoKr
}

ROOT = "(network)"
"""The layer of parameters that belong to no module inside the network."""


class Prediction(NamedTuple):
    """What the network sees at a state, both affine in its raw output."""

    x_0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]


class Denoiser(ABC):
    """A diffusion model: its prediction, its noise process and its encoders. One subclass per family, in `models/`.

    Attributes:
        network: the module that holds the attributable parameters; everything else is frozen.
        middle: a module of it halfway through, whose output [b, ...] is what the model itself makes of an image.
        alpha, sigma: float64 [1000], the noise process, so that x_t = alpha[t] x_0 + sigma[t] eps.
        shape: (c, h, w) of x_t.
        groups: the names that its attributable parameters go by, each with its pattern.
        negative: `empty` or `other_label`, the model's own c-minus (see `negatives`).
        combinations: the conditions `other_label` draws from, as texts.
    """

    groups: ClassVar[Mapping[str, str]] = GROUPS

    network: nn.Module
    middle: nn.Module
    alpha: Float[Tensor, " times"]
    sigma: Float[Tensor, " times"]
    shape: tuple[int, int, int]
    parameters: dict[str, nn.Parameter]
    negative: str = "empty"
    combinations: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, x_t: Float[Tensor, "b c h w"], t: int, cond: Condition) -> Prediction:
        """The prediction at (x_t, t, cond), in the precision of x_t whatever the network runs in. Never clips x_0."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Condition:
        """The condition of each text."""

    def spelled(self, text: str) -> str:
        """One spelling of all texts that are one condition: the number of a class.

        Raises:
            UserError: it is no condition of this model, such as a class that it does not have.
        """
        return text

    def require_whole(self, text: str) -> None:  # noqa: B027
        """Nothing where the model reads all of a text; `encode` cuts what is longer, as training on captions does.

        Raises:
            UserError: the model would not see the end of the text.
        """

    @abstractmethod
    def to_latent(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """Images in [-1, 1] as x_0."""

    @abstractmethod
    def to_pixels(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """x_0 as images, about [-1, 1]."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What makes this model another model, as digests: its part of a feature's fingerprint."""

    @property
    def conditioning(self) -> Conditioning:
        """What the model is conditioned on: a text, a class (by number or name), or nothing (`none`)."""
        return "text"

    @property
    def resolution(self) -> int:
        """Side of the images the model was made for, in pixels."""
        return self.shape[-1]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


def attributable(network: nn.Module, parameters: str, groups: Mapping[str, str] = GROUPS) -> dict[str, nn.Parameter]:
    """The parameters that a group or a pattern names; only they require gradients afterwards.

    Raises:
        UserError: the pattern is not a regular expression, or names no parameter.
    """
    named = dict(network.named_parameters())
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
    """The groups with any parameters: `all` (1,234 in 56 tensors), ..."""
    sizes = {group: [p.numel() for name, p in named.items() if re.search(pattern, name)]
             for group, pattern in groups.items()}  # fmt: skip
    return ", ".join(f"{group} ({sum(n):,} in {len(n)} tensors)" for group, n in sizes.items() if n)


def layer_of(name: str) -> str:
    """The module that owns a parameter: its weight and its bias are one layer, the network's own are `ROOT`."""
    return name.rpartition(".")[0] or ROOT


def equal_conditions(a: Condition, b: Condition) -> Bool[Tensor, " b"]:
    """Which samples have equal conditions in `a` and `b`."""
    return torch.stack([(a[name] == b[name]).reshape(len(a[name]), -1).all(1) for name in a]).all(0)


def concat_conditions(a: Condition, b: Condition) -> Condition:
    return {name: torch.cat([a[name], b[name]]) for name in a}


def take_rows(cond: Condition, rows: slice) -> Condition:
    return {name: value[rows] for name, value in cond.items()}


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

    g = 1 is the plain conditional prediction and needs no second one. x_0 is affine in eps, so it mixes alike. `seen`
    is the conditional prediction here, where someone has made it.
    """
    if guidance == 1:
        return seen or denoiser(x_t, t, cond)
    if seen is not None:
        (x_c, e_c), (x_n, e_n) = seen, denoiser(x_t, t, negative)
    else:
        both = denoiser(torch.cat([x_t, x_t]), t, concat_conditions(cond, negative))
        (x_c, x_n), (e_c, e_n) = both.x_0.chunk(2), both.eps.chunk(2)
    return Prediction(x_n + guidance * (x_c - x_n), e_n + guidance * (e_c - e_n))


def negatives(denoiser: Denoiser, ids: Sequence[str], texts: Sequence[str], seed: int, turn: int = 0) -> Condition:
    """The model's own negative for each sample: the empty condition, or another combination keyed by (seed, id).

    `turn` counts on from there through the other combinations.
    """
    if denoiser.negative == "empty":
        return denoiser.encode([""] * len(ids))
    spelled = denoiser.spelled
    others = [[c for c in denoiser.combinations if spelled(c) != spelled(text)] for text in texts]
    if not all(others):
        raise UserError("model.negative=other_label needs model.combinations with at least two entries to draw from")
    drawn = [
        o[(choice(len(o), seed, sample, "negative") + turn) % len(o)] for sample, o in zip(ids, others, strict=True)
    ]
    return denoiser.encode(drawn)


def negative_count(denoiser: Denoiser, wanted: int) -> int:
    """How many negatives a sample has where `asked` are: one if it is empty, else no more than there are others."""
    return 1 if denoiser.negative == "empty" else max(1, min(wanted, len(denoiser.combinations) - 1))


def unprompted_texts(denoiser: Denoiser, ids: Sequence[str], seed: int) -> list[str]:
    """Conditions under which a model draws what it draws: nothing, where it knows that, else one by (seed, id)."""
    if denoiser.negative == "empty":
        return [""] * len(ids)
    known = denoiser.combinations
    if not known:
        raise UserError("model.negative=other_label needs model.combinations: what the model draws by itself")
    return [known[choice(len(known), seed, sample, "condition")] for sample in ids]
