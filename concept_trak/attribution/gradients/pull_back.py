"""Per-sample J(s)^T v(s): a direction in noise space, pulled back to every attributable parameter.

One forward and one backward of the batch give the inputs of every layer and the gradients at its outputs. From these,
`layer_rules.py` computes the per-sample gradients of the layer's parameters (Goodfellow 2015). A parameter without such
a layer costs one more pass per sample. `pull_back_naive` uses that pass for all parameters; the tests compare with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser, Prediction
from concept_trak.attribution.gradients.factors import DenseGradient, Gradients, ParameterGradient
from concept_trak.attribution.gradients.separable_layers import SeparableLayers, recorded_pass
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.numerics import at_least_float32
from concept_trak.attribution.state import Direction, State

DirectionAt = Callable[[State, Prediction], Direction]
"""A row of `direction.DIRECTIONS` whose denoiser and probe are fixed."""


@dataclass(frozen=True)
class SampleGradients:
    """J(s)^T v(s) of b samples: `scale` times `gradients`.

    The backward pass takes v / scale, where `scale` is a power of two that brings the largest entry of v near 1: the v
    of a reward is about 1e-7, which is too small for float16. In float32 the division changes no digit.
    """

    gradients: dict[str, ParameterGradient]
    scale: Float[Tensor, " b"]
    prediction: Prediction
    direction: Direction

    def dense(self) -> Gradients:
        """[b, *shape] of every parameter, times `scale`; float32 or wider, because float16 may not hold `scale`."""
        return {name: times_each(at_least_float32(g.dense()), self.scale) for name, g in self.gradients.items()}


def pull_back(
    denoiser: Denoiser, state: State, directions: Sequence[DirectionAt], workspace: Workspace | None = None
) -> list[SampleGradients]:
    """J(s)^T v(s) of every sample for each direction: one forward for all directions, one backward for each.

    Equals `pull_back_naive` up to rounding.
    """
    workspace = workspace or Workspace()
    # Decoded images have their channels last in memory. The rule of a group norm would copy all inputs of that layout.
    state = state.at(state.x_t.detach().contiguous().requires_grad_())
    with torch.enable_grad():
        with recorded_pass(workspace.layers(denoiser)) as recording:
            prediction = denoiser(state.x_t, state.t, state.batch.cond)
        points = [direction(state, prediction) for direction in directions]
    layers = SeparableLayers(denoiser.parameters, workspace.layers(denoiser), recording, len(state.x_t))
    results = []
    for i, direction in enumerate(points):
        scale = _power_of_two(direction.v)
        v = times_each(at_least_float32(direction.v), 1 / scale).to(prediction.eps.dtype)
        gradients = layers.gradients(prediction.eps, v, keep_graph=i < len(points) - 1)
        if rest := [name for name in denoiser.parameters if name not in gradients]:
            workspace.report_slow(rest)
            gradients |= {name: DenseGradient(g) for name, g in _one_by_one(denoiser, state, v, rest).items()}
        ordered = {name: gradients[name] for name in denoiser.parameters}
        detached = Prediction(prediction.x_0.detach(), prediction.eps.detach())
        results.append(SampleGradients(ordered, scale, detached, direction))
    return results


def pull_back_naive(
    denoiser: Denoiser, state: State, direction: DirectionAt
) -> tuple[Gradients, Prediction, Direction]:
    """J(s)^T v(s) by one plain forward and backward per sample: the naive twin of `pull_back`, without layer rules."""
    rows, predictions, points = [], [], []
    for i in range(len(state.x_t)):
        sample = state.rows(slice(i, i + 1))
        sample = sample.at(sample.x_t.detach().requires_grad_())
        with torch.enable_grad():
            predictions.append(denoiser(sample.x_t, sample.t, sample.batch.cond))
            points.append(direction(sample, predictions[-1]))
            rows.append(backward(predictions[-1].eps, denoiser.parameters, points[-1].v))
    gradients = {name: torch.stack([row[name] for row in rows]) for name in denoiser.parameters}
    x_0, eps = (torch.cat(parts).detach() for parts in zip(*predictions, strict=True))
    v, fit = (torch.cat(parts).detach() for parts in zip(*points, strict=True))
    return gradients, Prediction(x_0, eps), Direction(v, fit)


def backward(
    output: Float[Tensor, "..."], parameters: Mapping[str, Tensor], v: Float[Tensor, "..."] | None = None
) -> dict[str, Tensor]:
    """J^T v of a whole batch by plain autograd, by parameter name; zeros for a parameter that `output` does not use.

    Args:
        output: a tensor with its graph; the call frees the graph.
        v: a tensor of the shape of `output`. None if `output` is one number and its gradient is wanted.
    """
    slopes = torch.autograd.grad(output, list(parameters.values()), v, allow_unused=True)
    pairs = zip(parameters.items(), slopes, strict=True)
    return {name: torch.zeros_like(p) if slope is None else slope for (name, p), slope in pairs}


def times_each(value: Float[Tensor, "b ..."], factor: Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Each sample's part times its factor, in the dtype of `value`."""
    return value * factor.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1))


def _power_of_two(v: Tensor) -> Float[Tensor, " b"]:
    """The power of two at or below each sample's largest entry; 1 if all entries are 0 or one is not finite."""
    largest = v.flatten(1).abs().amax(1).double()
    usable = (largest > 0) & largest.isfinite()
    return torch.exp2(torch.where(usable, largest, 1.0).log2().floor()).to(torch.promote_types(v.dtype, torch.float32))


def _one_by_one(denoiser: Denoiser, state: State, v: Tensor, names: list[str]) -> Gradients:
    """Exact per-sample gradients of a few parameters, with v fixed: one forward and one backward per sample."""
    chosen, rows = {name: denoiser.parameters[name] for name in names}, []
    for i in range(len(v)):
        sample = state.rows(slice(i, i + 1))
        with torch.enable_grad():
            eps = denoiser(sample.x_t, sample.t, sample.batch.cond).eps
            rows.append(backward(eps, chosen, v[i : i + 1]))
    return {name: torch.stack([row[name] for row in rows]) for name in names}
