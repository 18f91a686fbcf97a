"""Which parameters hold a concept: alpha_i = theta_i dJ/dtheta_i, the first-order effect of zeroing one of them.

J(theta with theta_i = 0) ~ J(theta) - alpha_i (CAD, Nguyen et al. 2024, eq. 4). So a positive alpha raises J, and the
alpha of a row or a tensor is the sum of its scalars' alphas. At a state, with D elements of x_t,

    erase      J = |eps_c - sg eps_c-|^2 / D     at states of sampling: how far the concept moves the prediction
    contrast   J = |eps_c - eps_c-|^2 / D        the same, and the gradient goes through both predictions
    amplify    J = -|eps_theta - eps|^2 / D      at noised images of the concept

The erase gradient is -1/w times that of `concept_reward` (direction.py), and CAD's. An edit, however, changes both
predictions, and contrast is the derivative of that. A reference, which an edit should preserve, is measured by how far
an edit would move its prediction, with z ~ N(0, 1) in every element:

    reach      F_i = E_z (d<z, eps_theta>/dtheta_i)^2 / D = |d eps_theta/dtheta_i|^2 / D

To first order, theta_i^2 F_i is the mean square by which zeroing theta_i moves the prediction. A measurement covers one
trajectory: the mean of its states' gradients (of F, with one z for each state), and the sum of every row at every
state, which gives the standard errors.

A measurement is stored as safetensors that carry their own sha256.
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
from concept_trak.attribution.gradients.pull_back import backward
from concept_trak.attribution.numerics import at_least_float32, norm_of_all, normal
from concept_trak.attribution.query import UNGUIDED, query_batch
from concept_trak.attribution.state import Probe, State, required
from concept_trak.attribution.trajectory import TRAJECTORIES, States, generate, walk
from concept_trak.store.checked_safetensors import checked_metadata, with_checksum
from concept_trak.store.part import Damaged

OBJECTIVES = ("erase", "contrast", "amplify")
MEASURED = (*OBJECTIVES, "reach")


@dataclass(frozen=True)
class Measurement:
    """What one trajectory measures, or the mean of several, by parameter name.

    Attributes:
        gradient: mean over the K states of dJ/dtheta, or of F; each has the shape of its parameter.
        rows: alpha, or theta^2 F, summed over each row (the first axis), float64.
        strength: the size of J and the mean square of eps_theta at each state, float64.
        trajectories: how many trajectories the mean is over.
    """

    gradient: dict[str, Tensor]
    rows: dict[str, Float[Tensor, "k rows"]]
    strength: Float[Tensor, "k 2"]
    trajectories: int = 1


def states_of(
    denoiser: Denoiser, objective: str, probe: Probe, concept: Concept, seed: int, pixels: Tensor | None = None
) -> States:
    """The states of one sample: those of its sampling, or for amplify, noised images of the concept.

    Args:
        objective: a row of `MEASURED`.
        seed: of the noise.
        pixels: for amplify, the image [1, 3, h, w] in [-1, 1]; without it, the model generates one.

    Raises:
        UserError: the objective is unknown, or is not amplify and the concept has an image.
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


def evaluations(objective: str, probe: Probe, has_image: bool = False) -> int:
    """Network evaluations of one trajectory, a backward as two; amplify without an image also generates one."""
    if objective != "amplify":
        sampled = replace(probe, trajectory="sampling", direction="" if objective == "reach" else "concept_reward")
        return sampled.evaluations + (2 * len(sampled.states) if objective == "contrast" else 0)
    return replace(probe, trajectory="forward_noise", direction="").evaluations + (0 if has_image else UNGUIDED.points)


def objective_at(denoiser: Denoiser, objective: str, state: State, seed: int = 0) -> tuple[Tensor, Prediction]:
    """J of a single sample at a state, with its graph (of reach: <z, eps_theta> / sqrt D), and the prediction there."""
    prediction = denoiser(state.x_t, state.t, state.batch.cond)
    if objective == "amplify":
        return -(prediction.eps - required(state.noise, "noise", objective)).square().mean(), prediction
    if objective == "reach":
        (sample,) = state.batch.ids
        z = normal(denoiser.shape, seed, sample, "reach", state.t).to(prediction.eps)
        return (prediction.eps[0] * z).sum() / z.numel() ** 0.5, prediction
    with torch.set_grad_enabled(objective == "contrast"):
        base = denoiser(state.x_t, state.t, required(state.batch.without, "without", objective)).eps
    return (prediction.eps - base).square().mean(), prediction


def measure(denoiser: Denoiser, objective: str, states: States, unit: bool = False, seed: int = 0) -> Measurement:
    """Measure the objective along one trajectory, with one backward at every state.

    Args:
        objective: a row of `MEASURED`.
        states: as `states_of` returns them.
        unit: divides the gradient of every state, but not F, by its norm over all parameters.
        seed: of z in reach.
    """
    total = _Total(denoiser, objective, unit)

    def visit(state: State) -> Prediction:
        with torch.enable_grad():
            j, prediction = objective_at(denoiser, objective, state, seed)
            gradient = backward(j, denoiser.parameters)
        prediction = Prediction(prediction.x_0.detach(), prediction.eps.detach())
        total.add(j.item(), prediction.eps, gradient)
        return prediction

    walk(states, visit)
    return total.measurement()


class _Total:
    """The sum of the gradients of the states visited so far, with every state's row sums and strength."""

    def __init__(self, denoiser: Denoiser, objective: str, unit: bool) -> None:
        self._reach = objective == "reach"
        self._unit = unit and not self._reach
        self._parameters = {name: p.detach() for name, p in denoiser.parameters.items()}
        self._sums = {name: at_least_float32(torch.zeros_like(p)) for name, p in self._parameters.items()}
        self._rows: dict[str, list[Tensor]] = {name: [] for name in self._parameters}
        self._strength: list[list[float]] = []

    def add(self, j: float, eps: Tensor, gradient: dict[str, Tensor]) -> None:
        """Add a state. `gradient` is emptied, so that memory never holds a second copy of the whole of it."""
        norm = norm_of_all(gradient.values()) if self._unit else 0.0
        for name, theta in self._parameters.items():
            g = at_least_float32(gradient.pop(name))
            g = g.square() if self._reach else g / (norm or 1.0)
            self._sums[name] += g
            self._rows[name].append(row_sums(theta, theta * g if self._reach else g))
        size = eps.double().square().mean().item()
        self._strength.append([size if self._reach else abs(j), size])

    def measurement(self) -> Measurement:
        count = len(self._strength)
        return Measurement(
            gradient={name: (g / count).cpu() for name, g in self._sums.items()},
            rows={name: torch.stack(each).cpu() for name, each in self._rows.items()},
            strength=torch.tensor(self._strength, dtype=torch.float64),
        )


def row_sums(theta: Tensor, gradient: Tensor) -> Float[Tensor, " rows"]:
    """alpha summed over each row of a parameter, float64."""
    return _as_rows(theta.detach().double() * gradient.double()).sum(1)


def mean_measurement(measurements: Iterable[Measurement]) -> Measurement:
    """The mean gradient, added in the order of `measurements`; the states of all, one after the other."""
    total, rest = dict[str, Tensor](), list[Measurement]()
    for m in measurements:
        total = {name: total[name] + g if total else g.clone() for name, g in m.gradient.items()}
        rest.append(replace(m, gradient={}))
    assert rest, "a concept has at least one seed"
    return Measurement(
        gradient={name: g / len(rest) for name, g in total.items()},
        rows={name: torch.cat([m.rows[name] for m in rest]) for name in total},
        strength=torch.cat([m.strength for m in rest]),
        trajectories=sum(m.trajectories for m in rest),
    )


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


def _as_rows(x: Tensor) -> Float[Tensor, "rows columns"]:
    return x.reshape(len(x), -1) if x.dim() else x.reshape(1, 1)


def measurement_to_bytes(measurement: Measurement) -> bytes:
    """The measurement as safetensors that carry their own sha256."""
    named = {f"gradient/{n}": g.contiguous() for n, g in measurement.gradient.items()}
    named |= {f"rows/{n}": r.contiguous() for n, r in measurement.rows.items()} | {"strength": measurement.strength}
    return with_checksum(save(named))


def measurement_from_bytes(data: bytes, name: str) -> Measurement:
    """The measurement that `measurement_to_bytes` wrote.

    Args:
        name: of the file, for the message.

    Raises:
        Damaged: the file was cut short or altered.
    """
    try:
        checked_metadata(data)
        read = load(data)
        strength = read["strength"]
    except (Damaged, SafetensorError, KeyError) as error:
        raise Damaged(f"{name} is not as it was written ({error}); delete it and run the command again") from None
    gradient, rows = (
        {name.removeprefix(kind): x for name, x in read.items() if name.startswith(kind)}
        for kind in ("gradient/", "rows/")
    )
    return Measurement(gradient, rows, strength)
