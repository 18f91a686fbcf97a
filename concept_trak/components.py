"""Which parameters hold a concept: alpha_i = theta_i dJ/dtheta_i, the first-order effect of zeroing one of them.

J(theta with theta_i = 0) ~ J(theta) - alpha_i (CAD, Nguyen et al. 2024, eq. 4), so a positive alpha raises J, and
the alpha of a row or a tensor is the sum of its scalars'. At a state, with D elements of x_t,

    erase      J = |eps_c - sg eps_c-|^2 / D     at states of sampling: how far the concept moves the prediction
    amplify    J = -|eps_theta - eps|^2 / D      at noised images of the concept

The erase gradient is -1/w times that of `concept_reward` (direction.py). A measurement is one trajectory: the mean of
its states' gradients, and the alpha of every row at every state, from which errors are told.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from concept_trak.concept import UNGUIDED, Concept, query_batch
from concept_trak.denoiser import Denoiser
from concept_trak.probe import Probe
from concept_trak.state import State, required
from concept_trak.trajectory import TRAJECTORIES, States, generate

OBJECTIVES = ("erase", "amplify")


@dataclass(frozen=True)
class Measurement:
    """What one trajectory says, by parameter name.

    `gradient`: mean over the K states of dJ/dtheta, the parameter's shape. `rows`: float64 [K, rows], alpha summed over
    each row (first axis). `strength`: float64 [K, 2], the size of what J measures and the mean square of eps_theta.
    """

    gradient: dict[str, Tensor]
    rows: dict[str, Float[Tensor, "k rows"]]
    strength: Float[Tensor, "k 2"]


def states_of(
    denoiser: Denoiser, objective: str, probe: Probe, concept: Concept, seed: int, pixels: Tensor | None = None
) -> States:
    """One sample's states: its sampling (erase), or noised images of it (amplify): `pixels`, or what the model draws.

    Raises:
        ValueError: an unknown objective, or erase about one image.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}; expected one of: {', '.join(OBJECTIVES)}")
    if objective == "erase" and concept.scope == "local":
        raise ValueError(f"concept {concept.name!r}: erase draws its own states; leave out scope=local and image")
    batch = query_batch(denoiser, replace(concept, samples=1), pixels)
    if objective == "erase":
        return TRAJECTORIES["sampling"](denoiser, batch, probe, seed)
    x_0 = generate(denoiser, batch, UNGUIDED, seed) if batch.x_0 is None else batch.x_0
    noised = replace(probe, trajectory="forward_noise", noise="per_sample")
    return TRAJECTORIES["forward_noise"](denoiser, replace(batch, x_0=x_0), noised, seed)


def objective_at(denoiser: Denoiser, objective: str, state: State) -> tuple[Float[Tensor, ""], Tensor]:
    """J of a single sample at a state, with its graph, and eps_theta there."""
    eps = denoiser(state.x_t, state.t, state.batch.cond).eps
    if objective == "amplify":
        return -(eps - required(state.noise, "noise", objective)).square().mean(), eps
    with torch.no_grad():
        base = denoiser(state.x_t, state.t, required(state.batch.without, "without", objective)).eps
    return (eps - base).square().mean(), eps


def measure(denoiser: Denoiser, objective: str, states: States, unit: bool = False) -> Measurement:
    """A backward at every state; with `unit` a state's gradient is divided by its norm over all parameters."""
    total = {n: torch.zeros_like(p, dtype=_wide(p.dtype)) for n, p in denoiser.parameters.items()}
    rows: dict[str, list[Tensor]] = {name: [] for name in total}
    strength: list[list[float]] = []
    for state in states:
        with torch.enable_grad():
            j, eps = objective_at(denoiser, objective, state)
            gradient = _gradient(j, denoiser)
        if unit:
            length = torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt()
            gradient = {name: g / length if length > 0 else g for name, g in gradient.items()}
        for name, g in gradient.items():
            total[name] += g
            rows[name].append(row_sums(denoiser.parameters[name], g))
        strength.append([abs(j.item()), eps.detach().double().square().mean().item()])
    return Measurement(
        {name: (g / len(strength)).cpu() for name, g in total.items()},
        {name: torch.stack(each).cpu() for name, each in rows.items()},
        torch.tensor(strength, dtype=torch.float64),
    )


def row_sums(theta: Tensor, gradient: Tensor) -> Float[Tensor, " rows"]:
    """alpha summed over each row of a parameter, float64."""
    return _as_rows(theta.detach().double() * gradient.double()).sum(1)


def mean(measurements: Iterable[Measurement]) -> Measurement:
    """The mean gradient, added in the order given; the states of all, one after the other."""
    total, seen = dict[str, Tensor](), list[Measurement]()
    for m in measurements:
        total = {name: total[name] + g if total else g.clone() for name, g in m.gradient.items()}
        seen.append(replace(m, gradient={}))
    assert seen, "a concept is asked with at least one seed"
    rows = {name: torch.cat([m.rows[name] for m in seen]) for name in total}
    return Measurement({n: g / len(seen) for n, g in total.items()}, rows, torch.cat([m.strength for m in seen]))


def alpha(denoiser: Denoiser, found: Measurement) -> dict[str, Tensor]:
    """theta_i dJ/dtheta_i of every scalar, by parameter name."""
    return {name: p.detach().to(found.gradient[name]) * found.gradient[name] for name, p in denoiser.parameters.items()}


def group_rows(alphas: dict[str, Tensor], found: Measurement, seeds: int) -> Iterable[dict[str, Any]]:
    """One line per tensor and, for what has more than one axis, one per row: the group's alpha and its errors.

    Standard errors are of the mean: over the seeds' means, and over all states as if they were independent (those of
    one trajectory are not). z = alpha / se_seeds. Null where it is unknown."""
    for name, a in alphas.items():
        by_row, flat = found.rows[name], _as_rows(a.double())
        yield {"granularity": "tensor", "tensor": name, **_line(by_row.sum(1), flat.flatten(), seeds)}
        if a.dim() > 1:
            for i in range(len(flat)):
                yield {"granularity": "row", "tensor": name, "row": i, **_line(by_row[:, i], flat[i], seeds)}


def top_rows(
    parameters: dict[str, Tensor], alphas: dict[str, Tensor], found: Measurement, top: int
) -> Iterable[dict[str, Any]]:
    """The `top` largest positive and negative alphas of all parameters, and where they stand."""
    for end, sign in (("positive", 1), ("negative", -1)):
        best = [_best(name, sign * a.flatten(), top) for name, a in alphas.items()]
        ordered = sorted((one for each in best for one in each), key=lambda one: (-one[0], one[1], one[2]))
        for rank, (_, name, i) in enumerate(ordered[:top], 1):
            width = _as_rows(alphas[name]).shape[1]
            values = {"theta": parameters[name].detach(), "gradient": found.gradient[name], "alpha": alphas[name]}
            numbers = {key: float(value.flatten()[i]) for key, value in values.items()}
            yield {"end": end, "rank": rank, "tensor": name, "row": i // width, "column": i % width, **numbers}


def expressed(found: Measurement) -> float:
    """How far the concept moves the prediction: |eps_c - eps_c-| / |eps_c|, root of the means over the states."""
    j, size = found.strength.mean(0).tolist()
    return (j / size) ** 0.5 if size > 0 else 0.0


def encode(found: Measurement) -> bytes:
    """As safetensors."""
    named = {f"gradient/{n}": g.contiguous() for n, g in found.gradient.items()}
    return save({**named, **{f"rows/{n}": r.contiguous() for n, r in found.rows.items()}, "strength": found.strength})


def decode(data: bytes, name: str) -> Measurement:
    """What `encode` wrote under a name.

    Raises:
        ValueError: it was cut short or altered.
    """
    try:
        read = load(data)
    except SafetensorError as error:
        raise ValueError(f"{name} is not as it was written ({error}); delete it and run the command again") from None
    cut = {p: {n.removeprefix(p): x for n, x in read.items() if n.startswith(p)} for p in ("gradient/", "rows/")}
    return Measurement(cut["gradient/"], cut["rows/"], read["strength"])


def _gradient(j: Tensor, denoiser: Denoiser) -> dict[str, Tensor]:
    found = torch.autograd.grad(j, list(denoiser.parameters.values()), allow_unused=True)
    pairs = zip(denoiser.parameters.items(), found, strict=True)
    return {n: torch.zeros_like(p) if g is None else g.to(_wide(g.dtype)) for (n, p), g in pairs}


def _line(states: Float[Tensor, " n"], scalars: Tensor, seeds: int) -> dict[str, Any]:
    of_seeds = states.view(seeds, -1).mean(1)
    value, se = states.mean().item(), _error(of_seeds)
    parts = {"alpha_positive": scalars.clamp(min=0).sum().item(), "alpha_negative": scalars.clamp(max=0).sum().item()}
    errors = {"se_seeds": se, "se_states": _error(states), "z": value / se if se else None}
    return {"parameters": scalars.numel(), "alpha": value, **parts, **errors, "seeds": seeds, "states": len(states)}


def _error(values: Float[Tensor, " n"]) -> float | None:
    return None if len(values) < 2 else (values.std() / len(values) ** 0.5).item()


def _best(name: str, values: Tensor, top: int) -> list[tuple[float, str, int]]:
    found = values.topk(min(top, len(values)))
    return [(v, name, i) for v, i in zip(found.values.tolist(), found.indices.tolist(), strict=True) if v > 0]


def _as_rows(x: Tensor) -> Float[Tensor, "rows columns"]:
    return x.reshape(len(x), -1) if x.dim() else x.reshape(1, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
