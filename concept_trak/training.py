"""Fitting a text-to-image diffusion model: the loop that made the demo's model, and that retrains it for causal tests.

    L(theta) = E mean (target - f_theta(alpha_t x_0 + sigma_t eps, t, c))^2

f_theta is the network's raw output and `TARGETS` says what it predicts; t is uniform; c is one of a sample's captions,
so that "" and single factors are conditions the model has seen (classifier-free guidance, Ho and Salimans 2022).
Letters: b samples of a batch, n training images, v captions of each, l tokens of one.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from concept_trak.noise import key
from concept_trak.recipe import TARGETS, Recipe, rate, times
from concept_trak.stepper import Task, stepper


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

    `ask(network, x_t, t, condition)` is how the raw output of such a network is asked for.
    """

    def __init__(self, network: nn.Module, text_encoder: nn.Module, ask: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.text_encoder, self.ask = network, text_encoder, ask

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], tokens: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b c h w"]:
        text = self.text_encoder(tokens)[0]
        return self.ask(self.network, x_t, t, {"text": text})


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


def refilled(removed: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Which image stands in each of n places once some are removed: itself, or in place of a removed one one of those
    kept, in turn from the first on.

    So a run with all images and one without some draw the same batches, but for the places of those removed.

    Raises:
        ValueError: none is kept.
    """
    rows, kept = np.arange(len(removed)), np.flatnonzero(~removed)
    if not len(kept):
        raise ValueError(f"all {len(removed)} training images are removed; expected some to be left")
    rows[removed] = np.resize(kept, int(removed.sum()))
    return rows


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
    network.train()
    update = stepper(network, average, recipe)
    for step in range(recipe.steps):
        task = drawn(examples, alpha, sigma, recipe, key(recipe.seed, "batch", step))
        loss = update(task, rate(step, recipe), min(recipe.decay, (1 + step) / (10 + step)))
        yield Progress(step, loss.item(), average)


def drawn(
    examples: Examples, alpha: Float[Tensor, " times"], sigma: Float[Tensor, " times"], recipe: Recipe, draws: int
) -> Task:
    """What one step is asked, on the CPU, so that every device is asked the same."""
    draw = torch.Generator().manual_seed(draws)
    rows = torch.randint(len(examples.images), (recipe.batch,), generator=draw)
    variant = torch.multinomial(examples.chances, recipe.batch, replacement=True, generator=draw)
    t = times(len(alpha), recipe.focus, recipe.batch, draw)
    x_0 = unit_range(examples.images[rows])
    eps = torch.randn(x_0.shape, generator=draw)
    alpha_t, sigma_t = alpha[t].float().view(-1, 1, 1, 1), sigma[t].float().view(-1, 1, 1, 1)
    target = TARGETS[recipe.prediction_type](x_0, eps, alpha_t, sigma_t)
    return Task(alpha_t * x_0 + sigma_t * eps, t, examples.tokens[rows, variant], target)


def unit_range(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes as the models see them: 0 ... 255 to [-1, 1]."""
    return images.float() / 127.5 - 1
