"""Fitting a text-to-image diffusion model: the loop that made the demo's model, and that retrains it for causal tests.

    L(theta) = E mean (target - f_theta(alpha_t x_0 + sigma_t eps, t, c))^2

f_theta is the network's raw output and `TARGETS` says what it predicts; t is uniform; c is one of a sample's captions,
so that "" and single factors are conditions the model has seen (classifier-free guidance, Ho and Salimans 2022).
Letters: b samples of a batch, n training images, v captions of each, l tokens of one.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from concept_trak.noise import key


def epsilon(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise (Ho et al. 2020, eq. 14)."""
    return eps


def velocity(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x_0 (Salimans and Ho 2022): near pure noise it asks for the image, not for its input."""
    return alpha * eps - sigma * x_0


TARGETS = {"epsilon": epsilon, "v_prediction": velocity}


MIDDLE = (0.1, 0.7)
"""Of the times: below, an image is all but there; above, all but noise."""
MUON = 5.0
"""Muon's rate over AdamW's; its steps are scaled to AdamW's size."""
INNER = 64
"""Least side of a matrix inside a network; inputs (pixels, one patch) and outputs have a smaller one."""


@dataclass(frozen=True)
class Recipe:
    """The numbers of one run."""

    seed: int = 0
    steps: int = 6000
    batch: int = 16
    learning_rate: float = 1.2e-3
    """Peak of AdamW's rate: a linear rise over `warm_up` steps, then half a cosine down to 0."""
    warm_up: int = 100
    decay: float = 0.998
    """Of the moving average of the weights, which is what is shipped; smaller in the first steps."""
    clip: float = 1.0
    """Largest Euclidean norm of a step's gradient."""
    prediction_type: str = "v_prediction"
    """A row of `TARGETS`, by the name diffusers' schedulers give it."""
    optimizer: str = "adamw"
    """adamw, or muon for the matrices inside the network (see `optimizers`)."""
    focus: float = 0.0
    """Share of a batch whose times are drawn from `MIDDLE` alone, where it is decided what an image shows."""

    def __post_init__(self) -> None:
        if not 0 < self.warm_up < self.steps:
            raise ValueError(f"warm_up={self.warm_up}, steps={self.steps}: expected 0 < warm_up < steps")
        if self.prediction_type not in TARGETS:
            raise ValueError(f"prediction_type={self.prediction_type!r}: expected one of {', '.join(TARGETS)}")
        if self.optimizer not in ("adamw", "muon") or not 0 <= self.focus <= 1:
            raise ValueError(
                f"optimizer={self.optimizer!r}, focus={self.focus}: expected adamw or muon, and a share in 0 ... 1"
            )
        if self.batch < 1 or self.learning_rate <= 0 or not 0 <= self.decay < 1:
            raise ValueError(
                f"batch={self.batch}, learning_rate={self.learning_rate}, decay={self.decay}: "
                "expected batch >= 1, learning_rate > 0 and 0 <= decay < 1"
            )


@dataclass(frozen=True)
class Examples:
    """A training set in memory.

    `tokens` holds each image's captions: the full one and those with factors left out. `chances` says how often each
    of the v is used; it sums to 1.
    """

    images: UInt8[Tensor, "n 3 h w"]
    tokens: Int[Tensor, "n v l"]
    chances: Float[Tensor, " v"]


class TextConditioned(nn.Module):
    """A denoising network and the text encoder it listens to, as one to fit: f_theta(x_t, t, tokens).

    `ask(network, x_t, t, text)` is how the raw output of such a network is asked for.
    """

    def __init__(self, network: nn.Module, text_encoder: nn.Module, ask: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.text_encoder, self.ask = network, text_encoder, ask

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], tokens: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b c h w"]:
        text = self.text_encoder(tokens)[0]
        return self.ask(self.network, x_t, t, text)


@dataclass(frozen=True)
class Progress:
    """Where `fit` stands after a step. `average` is one module, updated in place: copy it to keep it."""

    step: int
    loss: float
    average: nn.Module


def dropout(p: float) -> Float[Tensor, " 4"]:
    """Chances of (both factors, the first alone, the second alone, neither) when each factor is dropped with
    probability p, and besides both at once with probability p, all three independently."""
    kept = (1 - p) * torch.tensor([(1 - p) ** 2, (1 - p) * p, p * (1 - p), p * p])
    return kept + p * torch.tensor([0.0, 0.0, 0.0, 1.0])


def fit(
    network: nn.Module,
    examples: Examples,
    alpha: Float[Tensor, " times"],
    sigma: Float[Tensor, " times"],
    recipe: Recipe,
) -> Iterator[Progress]:
    """Trains `network`, a map (x_t, t, tokens) -> raw output, in place, and yields after every step.

    Step s draws its batch, times, noise and captions from the key (seed, s): the run depends on nothing else.
    """
    average = copy.deepcopy(network).requires_grad_(False).eval()
    falling = optimizers(network, recipe)
    network.train()
    for step in range(recipe.steps):
        for optimizer, peak in falling:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, recipe)
        loss = denoising_loss(network, examples, alpha, sigma, recipe, key(recipe.seed, "batch", step))
        network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        for optimizer, _ in falling:
            optimizer.step()
        _follow(average, network, min(recipe.decay, (1 + step) / (10 + step)))
        yield Progress(step, loss.item(), average)


def optimizers(network: nn.Module, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """What takes the steps, each with the peak of its rate.

    Muon (Jordan et al. 2024) orthogonalises the update of a matrix, so that its weak directions learn as fast as its
    strong ones. Here that decides: a colour is a strong direction and learnt at once, a shape a weak one. Inputs,
    outputs and everything that is no matrix stay with AdamW.
    """
    inner = [m.weight for m in network.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) >= INNER]
    if recipe.optimizer == "adamw" or not inner:
        return [(torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate), recipe.learning_rate)]
    named = {id(weight) for weight in inner}
    rest = [p for p in network.parameters() if id(p) not in named]
    peak = MUON * recipe.learning_rate
    return [
        (torch.optim.Muon(inner, lr=peak, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), peak),
        (torch.optim.AdamW(rest, lr=recipe.learning_rate), recipe.learning_rate),
    ]


def times(count: int, share: float, number: int, draw: torch.Generator) -> Int[Tensor, " number"]:
    """`number` times in 0 ... count - 1, uniform; about `share` of them from `MIDDLE` (in shares of count) instead."""
    if share == 0:
        return torch.randint(count, (number,), generator=draw)
    inside, where = torch.rand(number, generator=draw) < share, torch.rand(number, generator=draw)
    low, high = MIDDLE
    return (count * torch.where(inside, low + where * (high - low), where)).long()


def denoising_loss(
    network: nn.Module,
    examples: Examples,
    alpha: Float[Tensor, " times"],
    sigma: Float[Tensor, " times"],
    recipe: Recipe,
    draws: int,
) -> Float[Tensor, ""]:
    """One Monte Carlo estimate of L(theta) on `recipe.batch` images; all its randomness comes from the key `draws`."""
    device = next(network.parameters()).device
    draw = torch.Generator().manual_seed(draws)
    rows = torch.randint(len(examples.images), (recipe.batch,), generator=draw)
    variant = torch.multinomial(examples.chances, recipe.batch, replacement=True, generator=draw)
    t = times(len(alpha), recipe.focus, recipe.batch, draw)
    x_0 = unit_range(examples.images[rows])
    eps = torch.randn(x_0.shape, generator=draw)
    alpha_t, sigma_t = alpha[t].float().view(-1, 1, 1, 1), sigma[t].float().view(-1, 1, 1, 1)
    target = TARGETS[recipe.prediction_type](x_0, eps, alpha_t, sigma_t)
    x_t = alpha_t * x_0 + sigma_t * eps
    predicted = network(x_t.to(device), t.to(device), examples.tokens[rows, variant].to(device))
    return (predicted - target.to(device)).square().mean()


def unit_range(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes as the models see them: 0 ... 255 to [-1, 1]."""
    return images.float() / 127.5 - 1


def rate(step: int, recipe: Recipe) -> float:
    """The learning rate of a step, as a share of its peak, in (0, 1]."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
