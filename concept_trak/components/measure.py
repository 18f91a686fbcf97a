"""Which parameters hold a concept: alpha_i = theta_i dJ/dtheta_i, the first-order effect of zeroing one of them.

J(theta with theta_i = 0) ~ J(theta) - alpha_i (CAD, Nguyen et al. 2024, eq. 4), so a positive alpha raises J, and
the alpha of a row or a tensor is the sum of its scalars'. At a state, with D elements of x_t,

    erase      J = |eps_c - sg eps_c-|^2 / D     at states of sampling: how far the concept moves the prediction
    contrast   J = |eps_c - eps_c-|^2 / D        the same, and the gradient goes through both predictions
    amplify    J = -|eps_theta - eps|^2 / D      at noised images of the concept

The erase gradient is -1/w times that of `concept_reward` (direction.py), and CAD's. But what an edit does to J it does
with both predictions moving, which contrast is the derivative of. What is to stay is asked by how far it would
move, with z ~ N(0, 1) in every element:

    reach      F_i = E_z (d<z, eps_theta>/dtheta_i)^2 / D = |d eps_theta/dtheta_i|^2 / D

so that theta_i^2 F_i is, to first order, the mean square by which zeroing theta_i moves the prediction. A measurement
is one trajectory: the mean of its states' gradients (of F: one z a state), and the sum of every row at every state,
from which errors are told.

A measurement as bytes, and back: safetensors that carry their own sha256.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import Denoiser, Prediction
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.query import UNGUIDED, query_batch
from concept_trak.attribution.state import Probe, State, required
from concept_trak.attribution.trajectory import TRAJECTORIES, States, generate
from concept_trak.store.checked_safetensors import checked_metadata, with_checksum
from concept_trak.store.part import Damaged

OBJECTIVES = ("erase", "contrast", "amplify")
MEASURED = (*OBJECTIVES, "reach")


@dataclass(frozen=True)
class Measurement:
    """What one trajectory says, or the mean of several, by parameter name.

    `gradient`: mean over the K states of dJ/dtheta, or of F, the parameter's shape. `rows`: float64 [K, rows], alpha,
    or theta^2 F, summed over each row (first axis). `strength`: float64 [K, 2], the size of what J measures and the
    mean square of eps_theta.
    """

    gradient: dict[str, Tensor]
    rows: dict[str, Float[Tensor, "k rows"]]
    strength: Float[Tensor, "k 2"]
    trajectories: int = 1


def states_of(
    denoiser: Denoiser, objective: str, probe: Probe, concept: Concept, seed: int, pixels: Tensor | None = None
) -> States:
    """One sample's states: its sampling (erase, reach), or noised images of it (amplify).

    Those images are `pixels`, or what the model draws.

    Raises:
        UserError: an unknown objective, or erase about one image.
    """
    if objective not in MEASURED:
        raise UserError(f"objective={objective!r}; expected one of: {', '.join(OBJECTIVES)}")
    if objective != "amplify" and concept.scope == "local":
        raise UserError(f"concept {concept.name!r}: {objective} draws its own states; leave out scope=local and image")
    batch = query_batch(denoiser, replace(concept, samples=1), pixels)
    if objective != "amplify":
        return TRAJECTORIES["sampling"](denoiser, batch, probe, seed)
    x_0 = generate(denoiser, batch, UNGUIDED, seed) if batch.x_0 is None else batch.x_0
    noised = replace(probe, trajectory="forward_noise", noise="per_sample")
    return TRAJECTORIES["forward_noise"](denoiser, replace(batch, x_0=x_0), noised, seed)


def evaluations(objective: str, probe: Probe, given: bool = False) -> int:
    """Network evaluations of one trajectory, a backward counting two; amplify also draws an image that is not given."""
    if objective != "amplify":
        sampled = replace(probe, trajectory="sampling", direction="" if objective == "reach" else "concept_reward")
        return sampled.evaluations + (2 * len(sampled.states) if objective == "contrast" else 0)
    return replace(probe, trajectory="forward_noise", direction="").evaluations + (0 if given else UNGUIDED.points)


def objective_at(denoiser: Denoiser, objective: str, state: State, seed: int = 0) -> tuple[Tensor, Prediction]:
    """J of a single sample at a state, with its graph (of reach: <z, eps_theta> / sqrt D), and the prediction there."""
    seen = denoiser(state.x_t, state.t, state.batch.cond)
    if objective == "amplify":
        return -(seen.eps - required(state.noise, "noise", objective)).square().mean(), seen
    if objective == "reach":
        (sample,) = state.batch.ids
        z = normal(denoiser.shape, seed, sample, "reach", state.t).to(seen.eps)
        return (seen.eps[0] * z).sum() / z.numel() ** 0.5, seen
    with torch.set_grad_enabled(objective == "contrast"):
        base = denoiser(state.x_t, state.t, required(state.batch.without, "without", objective)).eps
    return (seen.eps - base).square().mean(), seen


def measure(denoiser: Denoiser, objective: str, states: States, unit: bool = False, seed: int = 0) -> Measurement:
    """A backward at every state; with `unit` a state's gradient (not F) is divided by its norm over all parameters."""
    total = {n: torch.zeros_like(p, dtype=_wide(p.dtype)) for n, p in denoiser.parameters.items()}
    rows: dict[str, list[Tensor]] = {name: [] for name in total}
    strength: list[list[float]] = []
    state = next(states, None)
    while state is not None:
        with torch.enable_grad():
            j, seen = objective_at(denoiser, objective, state, seed)
            gradient = _gradient(j, denoiser)
        length = _length(gradient) if unit and objective != "reach" else 1.0
        for name in total:
            g = gradient.pop(name)  # so that no second copy of the whole gradient is ever in memory
            g = g.square() if objective == "reach" else g / length
            total[name] += g
            theta = denoiser.parameters[name].detach()
            rows[name].append(row_sums(theta, theta * g if objective == "reach" else g))
        size = seen.eps.detach().double().square().mean().item()
        strength.append([size if objective == "reach" else abs(j.item()), size])
        state = _onward(states, Prediction(seen.x_0.detach(), seen.eps.detach()))
    return Measurement(
        {name: (g / len(strength)).cpu() for name, g in total.items()},
        {name: torch.stack(each).cpu() for name, each in rows.items()},
        torch.tensor(strength, dtype=torch.float64),
    )


def _onward(states: States, seen: Prediction) -> State | None:
    """The next state of a path that goes on from what was seen at the last; None at its end."""
    try:
        return states.send(seen)
    except StopIteration:
        return None


def _length(gradient: dict[str, Tensor]) -> float:
    """Over all parameters; 1 where there is none to divide by."""
    return torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt().item() or 1.0


def row_sums(theta: Tensor, gradient: Tensor) -> Float[Tensor, " rows"]:
    """alpha summed over each row of a parameter, float64."""
    return _as_rows(theta.detach().double() * gradient.double()).sum(1)


def mean_measurement(measurements: Iterable[Measurement]) -> Measurement:
    """The mean gradient, added in the order given; the states of all, one after the other."""
    total, seen = dict[str, Tensor](), list[Measurement]()
    for m in measurements:
        total = {name: total[name] + g if total else g.clone() for name, g in m.gradient.items()}
        seen.append(replace(m, gradient={}))
    assert seen, "a concept is asked with at least one seed"
    count = sum(m.trajectories for m in seen)
    rows = {name: torch.cat([m.rows[name] for m in seen]) for name in total}
    strength = torch.cat([m.strength for m in seen])
    return Measurement({n: g / len(seen) for n, g in total.items()}, rows, strength, count)


def alpha(denoiser: Denoiser, measurement: Measurement) -> dict[str, Tensor]:
    """theta_i dJ/dtheta_i of every scalar, by parameter name."""
    return {
        name: p.detach().to(measurement.gradient[name]) * measurement.gradient[name]
        for name, p in denoiser.parameters.items()
    }


def expressed(measurement: Measurement) -> float:
    """How far the concept moves the prediction: |eps_c - eps_c-| / |eps_c|, root of the means over the states."""
    j, size = measurement.strength.mean(0).tolist()
    return (j / size) ** 0.5 if size > 0 else 0.0


def _gradient(j: Tensor, denoiser: Denoiser) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(j, list(denoiser.parameters.values()), allow_unused=True)
    pairs = zip(denoiser.parameters.items(), gradients, strict=True)
    return {n: torch.zeros_like(p) if g is None else g.to(_wide(g.dtype)) for (n, p), g in pairs}


def _as_rows(x: Tensor) -> Float[Tensor, "rows columns"]:
    return x.reshape(len(x), -1) if x.dim() else x.reshape(1, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def measurement_to_bytes(measurement: Measurement) -> bytes:
    """As safetensors, with its own sha256."""
    named = {f"gradient/{n}": g.contiguous() for n, g in measurement.gradient.items()}
    named |= {f"rows/{n}": r.contiguous() for n, r in measurement.rows.items()} | {"strength": measurement.strength}
    return with_checksum(save(named))


def measurement_from_bytes(data: bytes, name: str) -> Measurement:
    """What `encode` wrote under a name.

    Raises:
        Damaged: it was cut short or altered.
    """
    try:
        checked_metadata(data)
        read = load(data)
        strength = read["strength"]
    except (Damaged, SafetensorError, KeyError) as error:
        raise Damaged(f"{name} is not as it was written ({error}); delete it and run the command again") from None
    cut = {p: {n.removeprefix(p): x for n, x in read.items() if n.startswith(p)} for p in ("gradient/", "rows/")}
    return Measurement(cut["gradient/"], cut["rows/"], strength)
