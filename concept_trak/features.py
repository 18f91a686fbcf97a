"""The short loop that composes everything: phi(z) = P sum_{s in trajectory(z)} u(J(s)^T v(s))."""

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
    parameters.
    """
    pointer = partial(_point, denoiser, probe)
    total, weights, states = None, torch.zeros(len(batch.ids)), torch.zeros(len(batch.ids), dtype=torch.int64)
    for state in TRAJECTORIES[probe.trajectory](denoiser, batch, probe, seed):
        gradients, seen, v = pull_back(denoiser, state, pointer)
        states += (v.flatten(1) != 0).any(1).cpu()
        weights += WEIGHTS[weight](state, seen).float().cpu()
        total = add(total, unit_norm(gradients) if unit else gradients)
    assert total is not None, "a probe without states"
    return Features(projector(total), weights if weight != "one" else torch.ones_like(weights), states)


def query_features(denoiser: Denoiser, projector: Projector, method: Method, batch: Batch, seed: int) -> Features:
    """The query side of a method over the samples of one concept; the query's feature is their mean."""
    return features(denoiser, projector, method.query, batch, seed, method.unit)


def unit_norm(gradients: Gradients) -> Gradients:
    """u(g) = g / |g|, and 0 where g is 0."""
    length = norm(gradients)
    factor = torch.where(length > 0, 1 / length, 0)
    return {name: g * factor.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}


def add(a: Gradients | None, b: Gradients) -> Gradients:
    return b if a is None else {name: a[name] + b[name] for name in b}


def _point(denoiser: Denoiser, probe: Probe, state: State, seen: Prediction) -> Tensor:
    return DIRECTIONS[probe.direction](denoiser, state, seen, probe)


def _one(state: State, seen: Prediction) -> Tensor:
    return torch.ones(len(state.x_t))


def squared_error(state: State, seen: Prediction) -> Tensor:
    """mean (eps - eps_theta)^2 of each sample, DAS's weight before its sum over states."""
    assert state.noise is not None, (
        "the weight needs the noise; Method allows it with forward_noise and ddim_inversion only"
    )
    return (state.noise - seen.eps).square().flatten(1).mean(1)


WEIGHTS = {"one": _one, "squared_error": squared_error}
