"""Fitting a text-to-image diffusion model: the loop that made the demo's model, and that retrains it for causal tests.

    L(theta) = E mean (target - f_theta(alpha_t x_0 + sigma_t eps, t, c))^2

f_theta is the network's raw output and `TARGETS` says what it predicts; t is uniform; c is one of a sample's captions,
so that "" and single factors are conditions the model has seen (classifier-free guidance, Ho and Salimans 2022).
Letters: b samples of a batch, n training images, v captions of each, l tokens of one.

One step of a training run: on a CPU as it is written, on a GPU captured once and replayed.

A small network's step is thousands of kernels of microseconds each, and to launch them takes longer than to run them.
A CUDA graph launches all of them at once; what changes from step to step (the task, the rates, the average's decay) is
written into tensors that the graph reads.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from concept_trak.attribution.numerics import key
from concept_trak.evaluation.training.optim import TARGETS, Recipe, optimizers, rate, times


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


class Task(NamedTuple):
    """What one step asks of the network at b noised images, and what it should answer."""

    x_t: Float[Tensor, "b c h w"]
    t: Int[Tensor, " b"]
    tokens: Int[Tensor, "b l"]
    target: Float[Tensor, "b c h w"]


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


WARM_UP = 3
"""Steps before the capture, taken back afterwards: libraries set themselves up in them, which no graph can hold."""
Update = Callable[[Task, float, float], Float[Tensor, ""]]
"""(task, share of the peak rates, the average's decay) -> the loss before the step. Moves network and average."""


def squared_error(network: nn.Module, task: Task) -> Float[Tensor, ""]:
    return (network(task.x_t, task.t, task.tokens) - task.target).square().mean()


def stepper(network: nn.Module, average: nn.Module, recipe: Recipe) -> Update:
    """The step of a run, for the device that the network is on."""
    device = next(network.parameters()).device
    return Captured(network, average, recipe) if device.type == "cuda" else Plain(network, average, recipe)


class Plain:
    """Step by step, as it is written: the oracle of the other."""

    def __init__(self, network: nn.Module, average: nn.Module, recipe: Recipe) -> None:
        self.network, self.average, self.recipe = network, average, recipe
        self.device = next(network.parameters()).device
        self.falling = optimizers(network, recipe)
        self.decay = torch.zeros((), device=self.device)

    def __call__(self, task: Task, share: float, decay: float) -> Float[Tensor, ""]:
        self.set(share, decay)
        return self.step(Task(*(part.to(self.device) for part in task)))

    def set(self, share: float, decay: float) -> None:
        self.decay.fill_(decay)
        for optimizer, peak in self.falling:
            for group in optimizer.param_groups:
                group["lr"].fill_(peak * share)

    def step(self, task: Task) -> Float[Tensor, ""]:
        loss = squared_error(self.network, task)
        self.network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        for optimizer, _ in self.falling:
            optimizer.step()
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - self.decay)
        return loss.detach()


class Captured(Plain):
    """The same step as a CUDA graph."""

    def __init__(self, network: nn.Module, average: nn.Module, recipe: Recipe) -> None:
        super().__init__(network, average, recipe)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, task: Task, share: float, decay: float) -> Float[Tensor, ""]:
        if self.graph is None:
            self._capture(task)
        self.set(share, decay)
        for held, part in zip(self.task, task, strict=True):
            held.copy_(part)
        assert self.graph is not None
        self.graph.replay()
        return self.loss

    def _capture(self, task: Task) -> None:
        self.task = Task(*(part.to(self.device) for part in task))
        start = [p.detach().clone() for p in self.network.parameters()]
        self.set(1.0, 1.0)  # the average stays where it is
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.step(self.task)
        torch.cuda.current_stream().wait_stream(aside)
        self._forget(start)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.step(self.task)

    @torch.no_grad()
    def _forget(self, start: list[Tensor]) -> None:
        """As if no step had been taken: the weights as they were; moments and counts, which are tensors, at 0."""
        self.network.zero_grad()
        for weight, kept in zip(self.network.parameters(), start, strict=True):
            weight.copy_(kept)
        for optimizer, _ in self.falling:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()
