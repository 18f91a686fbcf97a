"""The training loop of the benchmark's text-to-image models.

    L(theta) = E mean (target - f_theta(alpha_t x_0 + sigma_t eps, t, c))^2

f_theta is the network's raw output, and `TARGETS` has the quantity that it predicts. t is uniform. c is one of the
sample's captions, some of which are empty or have a single factor, so that the model is also trained on these
conditions (classifier-free guidance, Ho and Salimans 2022).

Letters: b samples of a batch, n training images, v captions of each, l tokens of one.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from concept_trak import UserError
from concept_trak.attribution.numerics import key
from concept_trak.evaluation.training.optim import optimizers, rate_share
from concept_trak.evaluation.training.settings import TrainConfig

CLIP = 1.0
"""Largest Euclidean norm of a step's gradient."""
MIDDLE = (0.1, 0.7)
"""The range of times, as shares, at which the model decides the content of an image. At smaller times the image is
nearly clean, at larger ones nearly noise."""


@dataclass(frozen=True)
class TrainingSet:
    """A training set in memory.

    Attributes:
        images: the images, as bytes.
        tokens: each image's captions: the full one, and those that leave factors out.
        chances: the probability of each of the v captions; they sum to 1.
    """

    images: UInt8[Tensor, "n 3 h w"]
    tokens: Int[Tensor, "n v l"]
    chances: Float[Tensor, " v"]


class TextConditioned(nn.Module):
    """A denoising network and its text encoder as one trainable module: f_theta(x_t, t, tokens).

    Args:
        network: the denoising network.
        text_encoder: returns the text condition of tokens.
        predict: `predict(network, x_t, t, condition)` returns the network's raw output.
    """

    def __init__(self, network: nn.Module, text_encoder: nn.Module, predict: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.text_encoder, self.predict = network, text_encoder, predict

    def forward(
        self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], tokens: Int[Tensor, "b l"]
    ) -> Float[Tensor, "b c h w"]:
        text = self.text_encoder(tokens)[0]
        return self.predict(self.network, x_t, t, {"text": text})


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run after a step. Later steps update the module `average` in place, so copy it to keep it."""

    step: int
    loss: float
    average: nn.Module


def caption_chances(p: float) -> Float[Tensor, " 4"]:
    """Probabilities of (both factors, the first alone, the second alone, neither) in a caption.

    Each factor is dropped with probability p, and both at once with probability p, all three independently.
    """
    chances = (1 - p) * torch.tensor([(1 - p) ** 2, (1 - p) * p, p * (1 - p), p * p])
    return chances + p * torch.tensor([0.0, 0.0, 0.0, 1.0])


def replacement_rows(removed: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each of n images, the image that a run uses: the image itself, or the next kept one if it is removed.

    A run with all images and a run without some then draw the same batches, except for the removed images.

    Raises:
        UserError: all images are removed.
    """
    rows, remaining = np.arange(len(removed)), np.flatnonzero(~removed)
    if not len(remaining):
        raise UserError(f"all {len(removed)} training images are removed; expected at least one to remain")
    rows[removed] = np.resize(remaining, int(removed.sum()))
    return rows


class TrainingBatch(NamedTuple):
    """The input of one step, b images with noise, and the target output."""

    x_t: Float[Tensor, "b c h w"]
    t: Int[Tensor, " b"]
    tokens: Int[Tensor, "b l"]
    target: Float[Tensor, "b c h w"]


def epsilon(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise (Ho et al. 2020, eq. 14)."""
    return eps


def velocity(x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x_0 (Salimans and Ho 2022): near pure noise, the target is the image and not the noise."""
    return alpha * eps - sigma * x_0


TARGETS = {"epsilon": epsilon, "v_prediction": velocity}


def draw_batch(
    data: TrainingSet, alpha: Float[Tensor, " times"], sigma: Float[Tensor, " times"], config: TrainConfig, seed: int
) -> TrainingBatch:
    """The batch of one step. It is drawn on the CPU, so that it is the same for every device."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(data.images), (config.batch,), generator=draw)
    variant = torch.multinomial(data.chances, config.batch, replacement=True, generator=draw)
    t = draw_times(len(alpha), config.focus, config.batch, draw)
    x_0 = unit_range(data.images[rows])
    eps = torch.randn(x_0.shape, generator=draw)
    alpha_t, sigma_t = alpha[t].float().view(-1, 1, 1, 1), sigma[t].float().view(-1, 1, 1, 1)
    target = TARGETS[config.prediction_type](x_0, eps, alpha_t, sigma_t)
    return TrainingBatch(alpha_t * x_0 + sigma_t * eps, t, data.tokens[rows, variant], target)


def draw_times(times: int, share: float, count: int, draw: torch.Generator) -> Int[Tensor, " count"]:
    """`count` times in 0 ... times - 1: a share of about `share` from the range `MIDDLE`, the others uniform."""
    if share == 0:
        return torch.randint(times, (count,), generator=draw)
    inside, position = torch.rand(count, generator=draw) < share, torch.rand(count, generator=draw)
    low, high = MIDDLE
    return (times * torch.where(inside, low + position * (high - low), position)).long()


def unit_range(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images as the input of a model: 0 ... 255 becomes [-1, 1]."""
    return images.float() / 127.5 - 1


def training_loss(network: nn.Module, batch: TrainingBatch) -> Float[Tensor, ""]:
    """Mean square of target - f_theta."""
    return (network(batch.x_t, batch.t, batch.tokens) - batch.target).square().mean()


def training_steps(
    network: nn.Module,
    data: TrainingSet,
    alpha: Float[Tensor, " times"],
    sigma: Float[Tensor, " times"],
    config: TrainConfig,
) -> Iterator[TrainingProgress]:
    """Train `network`, a map (x_t, t, tokens) -> raw output, in place, and yield after every step.

    Step s draws its batch, times, noise and captions from the key (seed, s), so a run has no other randomness.
    """
    average = copy.deepcopy(network).requires_grad_(False).eval()
    network.train()
    cuda = next(network.parameters()).device.type == "cuda"
    update = GraphStep(network, average, config) if cuda else EagerStep(network, average, config)
    for step in range(config.steps):
        batch = draw_batch(data, alpha, sigma, config, key(config.seed, "batch", step))
        loss = update(batch, rate_share(step, config), min(config.decay, (1 + step) / (10 + step)))
        yield TrainingProgress(step, loss.item(), average)


class EagerStep:
    """One step of plain PyTorch, which updates the network and the average; the tests compare `GraphStep` with it.

    The average is updated here because `torch.optim.swa_utils.AveragedModel` copies its counter from the CPU in every
    update, and a CUDA graph cannot capture that.
    """

    def __init__(self, network: nn.Module, average: nn.Module, config: TrainConfig) -> None:
        self.network, self.average = network, average
        self.device = next(network.parameters()).device
        self.optimizers = optimizers(network, config)
        self.decay = torch.zeros((), device=self.device)

    def __call__(self, batch: TrainingBatch, share: float, decay: float) -> Float[Tensor, ""]:
        """Do one step.

        Args:
            batch: the input of the step.
            share: the learning rates as a share of their peaks.
            decay: the decay of the average.

        Returns:
            The loss before the step.
        """
        self.set_rates(share, decay)
        return self.step(TrainingBatch(*(part.to(self.device) for part in batch)))

    def set_rates(self, share: float, decay: float) -> None:
        """Set the learning rates and the decay. They are tensors, which a captured step reads."""
        self.decay.fill_(decay)
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"].fill_(peak * share)

    def step(self, batch: TrainingBatch) -> Float[Tensor, ""]:
        loss = training_loss(self.network, batch)
        self.network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(weight, 1 - self.decay)
        return loss.detach()


WARM_UP = 3
"""Steps before the capture, which are undone. Libraries initialize themselves in them; a graph cannot capture that."""


class GraphStep(EagerStep):
    """The same step as a CUDA graph, captured once and replayed.

    The step of a small network has thousands of kernels of a few microseconds, and their launches take longer than
    their work. A graph launches all of them at once. `torch.cuda.make_graphed_callables` captures only the forward and
    backward passes; this graph also has the clipping, the optimizers and the average.
    """

    def __init__(self, network: nn.Module, average: nn.Module, config: TrainConfig) -> None:
        super().__init__(network, average, config)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: TrainingBatch, share: float, decay: float) -> Float[Tensor, ""]:
        graph = self.graph or self._capture(batch)
        self.set_rates(share, decay)
        for captured, part in zip(self.batch, batch, strict=True):
            captured.copy_(part)
        graph.replay()
        return self.loss

    def _capture(self, batch: TrainingBatch) -> torch.cuda.CUDAGraph:
        self.batch = TrainingBatch(*(part.to(self.device) for part in batch))
        start = [p.detach().clone() for p in self.network.parameters()]
        self.set_rates(1.0, 1.0)  # a decay of 1 leaves the average unchanged
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP):
                self.step(self.batch)
        torch.cuda.current_stream().wait_stream(side_stream)
        self._undo(start)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.step(self.batch)
        return self.graph

    @torch.no_grad()
    def _undo(self, start: list[Tensor]) -> None:
        """Restore the weights, and set the optimizers' moments and step counts, which are tensors, to 0."""
        self.network.zero_grad()
        for weight, initial in zip(self.network.parameters(), start, strict=True):
            weight.copy_(initial)
        for optimizer, _ in self.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()
