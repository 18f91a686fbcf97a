"""One step of a training run: on a CPU as it is written, on a GPU captured once and replayed.

A small network's step is thousands of kernels of microseconds each, and to launch them takes longer than to run them.
A CUDA graph launches all of them at once; what changes from step to step (the task, the rates, the average's decay) is
written into tensors that the graph reads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from concept_trak.recipe import Recipe, optimizers

WARM_UP = 3
"""Steps before the capture, taken back afterwards: libraries set themselves up in them, which no graph can hold."""


class Task(NamedTuple):
    """What one step asks of the network at b noised images, and what it should answer."""

    x_t: Float[Tensor, "b c h w"]
    t: Int[Tensor, " b"]
    tokens: Int[Tensor, "b l"]
    target: Float[Tensor, "b c h w"]


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
