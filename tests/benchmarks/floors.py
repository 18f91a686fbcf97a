"""The floors: the forward and backward passes that the mathematics needs, batched, and nothing beside them.

A floor's backward adds up the samples' gradients, as in training: it is the price of a pass, not of an answer. What is
seen at a state of a path serves the path's next step.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import reduce

import torch

from concept_trak.attribution.denoiser import Prediction, concat_conditions
from concept_trak.attribution.state import State, required
from concept_trak.attribution.trajectory import States
from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import Work

# What a direction needs beside the state's own forward and its backward: a slope in x_t, or other conditions' forwards.
SLOPE = ("reconstruction_reward",)
AGAINST = ("caption_reward", "caption_fit")


def build(work: Work, backward: bool) -> Round:
    """Forwards alone, or with every backward that the task's direction needs; trajectories run in both."""

    def visit(state: State) -> Prediction:
        return _passes(work, state) if backward else _forward(work, state)

    def round() -> Output:
        for batch in work.batches:
            _walk(work.states(batch), visit)
        return Output()

    return round


def _walk(path: States, visit: Callable[[State], Prediction]) -> None:
    seen = None
    with suppress(StopIteration):  # a generator's own way to say that it has come to its end
        while True:
            seen = visit(path.send(seen))


def _forward(work: Work, state: State) -> Prediction:
    with torch.no_grad():
        return work.denoiser(state.x_t, state.t, state.batch.cond)


def _passes(work: Work, state: State) -> Prediction:
    """One forward; one backward to the parameters; what the direction needs besides."""
    direction, denoiser, batch = work.task.probe.direction, work.denoiser, state.batch
    x_t = state.x_t.detach().requires_grad_(direction in SLOPE)
    seen = denoiser(x_t, state.t, batch.cond)
    if direction in SLOPE:
        x_0 = required(batch.x_0, "x_0", direction)
        torch.autograd.grad((seen.x_0 - x_0).square().sum(), x_t, retain_graph=True)
    elif direction in AGAINST:
        negatives = [batch.negative, *batch.others]
        with torch.no_grad():
            denoiser(state.x_t.repeat(len(negatives), 1, 1, 1), state.t, reduce(concat_conditions, negatives))
    else:
        assert direction == "denoising_error", f"what {direction} needs besides is not written down here"
    torch.autograd.grad(seen.eps, list(denoiser.parameters.values()), seen.eps.detach(), allow_unused=True)
    return Prediction(seen.x_0.detach(), seen.eps.detach())
