"""The short loop that composes everything: phi(z) = P sum_{s in trajectory(z)} a(s) u(J(s)^T v(s)).

a(s), in [0, 1], is how much a state counts: 1, unless its direction says otherwise.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser, Prediction
from concept_trak.attribution.direction import DIRECTIONS, WEIGHTS
from concept_trak.attribution.gradients.accumulate import feature_sum, gradient_norms
from concept_trak.attribution.gradients.pull_back import SampleGradients, pull_back_each
from concept_trak.attribution.method import Method
from concept_trak.attribution.numerics import at_least_float32
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch, Direction, Probe, State
from concept_trak.attribution.trajectory import TRAJECTORIES, States


class Features(NamedTuple):
    """One projected gradient per sample: b samples, k features.

    `weight` multiplies the finished score. `states` counts where the sample had a direction: 0 means it has no feature.
    """

    phi: Float[Tensor, "b k"]
    weight: Float[Tensor, " b"]
    states: Int[Tensor, " b"]


class FeatureSpec(NamedTuple):
    """One side of a method: what `features` is asked for."""

    probe: Probe
    unit: bool = False
    weight: str = "one"
    over: str = "all"


def compute_features(
    denoiser: Denoiser,
    projector: Projector,
    probe: Probe,
    batch: Batch,
    seed: int,
    unit: bool,
    weight: str = "one",
    over: str = "all",
) -> Features:
    """phi, weight and number of usable states of every sample of a batch; none depends on its batch mates."""
    return features_of_each(denoiser, projector, [FeatureSpec(probe, unit, weight, over)], batch, seed)[0]


def query_features(denoiser: Denoiser, projector: Projector, method: Method, batch: Batch, seed: int) -> Features:
    """The query side of a method over the samples of one concept; the query's feature is their mean."""
    return compute_features(denoiser, projector, method.query, batch, seed, method.unit, over=method.over)


def features_of_each(
    denoiser: Denoiser, projector: Projector, sides: Sequence[FeatureSpec], batch: Batch, seed: int
) -> list[Features]:
    """The features of several sides with one path: they stand on the same states, and share each state's forward.

    Sides with one probe also share its backward.
    """
    paths, probes = {side.probe.path for side in sides}, list(dict.fromkeys(side.probe for side in sides))
    assert len(paths) == 1, f"sides with {len(paths)} paths cannot share their states"
    pointers = [partial(_point, denoiser, probe) for probe in probes]
    sums = [_Sum(denoiser, projector, side, len(batch.ids)) for side in sides]
    path = TRAJECTORIES[sides[0].probe.trajectory](denoiser, batch, sides[0].probe, seed)
    state = next(path, None)
    while state is not None:
        pulled = pull_back_each(denoiser, state, pointers)
        for one in sums:
            one.add(state, pulled[probes.index(one.side.probe)])
        state = _onward(path, pulled[0].seen)
    return [one.features() for one in sums]


def _onward(path: States, seen: Prediction) -> State | None:
    """The next state of a path that goes on from what was seen at the last one; None at its end."""
    try:
        return path.send(seen)
    except StopIteration:
        return None


class _Sum:
    """One side's sum over the states.

    `u` divides by the norm over all attributable parameters, or each layer by its own; a(s) multiplies after it.
    """

    def __init__(self, denoiser: Denoiser, projector: Projector, side: FeatureSpec, b: int) -> None:
        self.side, self.total = side, feature_sum(projector, denoiser.parameters, b)
        self.weight, self.states = torch.zeros(()), torch.zeros(b, dtype=torch.int64)

    def add(self, state: State, pulled: SampleGradients) -> None:
        self.states += (pulled.pointed.v.flatten(1) != 0).any(1).cpu()
        self.weight = self.weight + at_least_float32(WEIGHTS[self.side.weight](state, pulled.seen)).cpu()
        factor = pulled.pointed.fit.to(pulled.scale.dtype)
        if self.side.unit:
            length, taken = gradient_norms(pulled.pieces, self.side.over, self.total.take)
            # Of the few tensors that the names share: on a small network many small steps cost as much as a layer.
            shared = {id(n): n for n in length.values()}
            rate = {i: factor * torch.where(n > 0, 1 / n, 0) for i, n in shared.items()}
            for name, piece in taken.items():
                self.total.put(name, piece, rate[id(length[name])])
        else:
            factor = factor * pulled.scale
            for name, piece in pulled.pieces.items():
                self.total.add(name, piece, factor)

    def features(self) -> Features:
        weight = self.weight if self.side.weight != "one" else torch.ones_like(self.weight)
        return Features(self.total.phi(), weight, self.states)


def _point(denoiser: Denoiser, probe: Probe, state: State, seen: Prediction) -> Direction:
    return DIRECTIONS[probe.direction](denoiser, state, seen, probe)
