"""The short loop that composes everything: phi(z) = P sum_{s in trajectory(z)} a(s) u(J(s)^T v(s))."""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from concept_trak.denoiser import Denoiser, Prediction
from concept_trak.direction import DIRECTIONS
from concept_trak.gradient import Gradients, norm, pull_back
from concept_trak.method import Method
from concept_trak.probe import Probe
from concept_trak.projector import Projector
from concept_trak.state import Batch, State
from concept_trak.trajectory import TRAJECTORIES
from concept_trak.weight import GATES, WEIGHTS


class Features(NamedTuple):
    """One projected gradient per sample: b samples, k features.

    `weight` multiplies the finished score. `states` counts where the sample had a direction: 0 means it has no feature.
    """

    phi: Float[Tensor, "b k"]
    weight: Float[Tensor, " b"]
    states: Int[Tensor, " b"]


def features(
    denoiser: Denoiser, projector: Projector, probe: Probe, batch: Batch, seed: int, unit: bool, weight: str = "one"
) -> Features:
    """phi, weight and number of usable states of every sample of a batch; none depends on its batch mates.

    P is linear, so it is applied once, after the sum over states. `u` divides by the norm over all attributable
    parameters; the probe's gate multiplies after it.
    """
    pointer = partial(_point, denoiser, probe)
    total, weights, states = None, torch.zeros(()), torch.zeros(len(batch.ids), dtype=torch.int64)
    for state in TRAJECTORIES[probe.trajectory](denoiser, batch, probe, seed):
        gradients, seen, v = pull_back(denoiser, state, pointer)
        states += (v.flatten(1) != 0).any(1).cpu()
        weights = weights + WEIGHTS[weight](probe, state, seen, v).to(torch.promote_types(v.dtype, torch.float32)).cpu()
        directed = unit_norm(gradients) if unit else gradients
        gate = GATES[probe.gate](probe, state, seen, v)
        total = add(total, directed if probe.gate == "one" else times(directed, gate))
    assert total is not None, "a probe without states"
    return Features(projector(total), weights if weight != "one" else torch.ones_like(weights), states)


def query_features(denoiser: Denoiser, projector: Projector, method: Method, batch: Batch, seed: int) -> Features:
    """The query side of a method over the samples of one concept; the query's feature is their mean."""
    return features(denoiser, projector, method.query, batch, seed, method.unit)


def unit_norm(gradients: Gradients) -> Gradients:
    """u(g) = g / |g|, and 0 where g is 0."""
    length = norm(gradients)
    return times(gradients, torch.where(length > 0, 1 / length, 0))


def times(gradients: Gradients, factor: Float[Tensor, " b"]) -> Gradients:
    """Each sample's gradient times its factor."""
    return {name: g * factor.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}


def add(a: Gradients | None, b: Gradients) -> Gradients:
    return b if a is None else {name: a[name] + b[name] for name in b}


def _point(denoiser: Denoiser, probe: Probe, state: State, seen: Prediction) -> Tensor:
    return DIRECTIONS[probe.direction](denoiser, state, seen, probe)
