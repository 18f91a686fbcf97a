"""Trajectories: from a batch of samples to the states at which gradients are taken.

A trajectory is a generator `(denoiser, batch, probe, seed) -> states`. Paths are computed without gradients. Guidance
changes the path only; a direction uses the sample's own condition. A caller that has evaluated the network at a state
may send the prediction back to the generator, which then does not compute it again. States are at least float32,
whatever the network runs in.
"""

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from concept_trak import UserError
from concept_trak.attribution.denoiser import Denoiser, Prediction, guided
from concept_trak.attribution.numerics import at_least_float32, normal
from concept_trak.attribution.state import Batch, Probe, State, required, time_grid

States = Generator[State, Prediction | None, None]
Trajectory = Callable[[Denoiser, Batch, Probe, int], States]


class PathEnd(NamedTuple):
    """The last state of a path, and the prediction at it."""

    state: State
    prediction: Prediction

    def rows(self, rows: slice) -> "PathEnd":
        """Of some samples."""
        return PathEnd(self.state.rows(rows), Prediction(*(value[rows] for value in self.prediction)))


def ddim_step(
    denoiser: Denoiser, prediction: Prediction, t: int, s: int, eta: float = 0.0, noise: Tensor | None = None
) -> Float[Tensor, "b c *space"]:
    """One DDIM update from t to s (Song et al. 2021, eq. 12 and 16).

        x_s = alpha_s x_0 + sqrt(sigma_s^2 - v^2) eps + v z
        v   = eta sqrt(sigma_s^2 / sigma_t^2) sqrt(1 - alpha_t^2 / alpha_s^2)

    Args:
        prediction: x_0 and eps at t.
        t, s: times in 0 ... 999; s > t inverts.
        eta: 0 is deterministic; positive only if alpha^2 + sigma^2 = 1.
        noise: z [b, c, h, w], standard normal; None leaves out its term.

    Raises:
        UserError: eta is positive, and the model does not preserve variance.
    """
    alpha, sigma = denoiser.alpha.tolist(), denoiser.sigma.tolist()
    spread = 0.0
    if eta > 0:
        if abs(alpha[t] ** 2 + sigma[t] ** 2 - 1) > 1e-6:
            raise UserError("eta > 0 is defined for variance-preserving models only; set eta=0 for this model.")
        spread = eta * sigma[s] / sigma[t] * math.sqrt(max(0.0, 1 - (alpha[t] / alpha[s]) ** 2))
    x_s = alpha[s] * prediction.x_0 + math.sqrt(max(0.0, sigma[s] ** 2 - spread**2)) * prediction.eps
    return x_s if noise is None else x_s + spread * noise


def forward_noise(denoiser: Denoiser, batch: Batch, probe: Probe, seed: int) -> States:
    """x_t = alpha_t x_0 + sigma_t eps at `probe.times`; eps is one tensor per t (`shared`) or one per sample and t."""
    x_0 = at_least_float32(required(batch.x_0, "x_0", "forward_noise"))
    for t in probe.times:
        if probe.noise == "shared":
            eps = normal(tuple(x_0.shape[1:]), seed, "shared", t)[None].expand(x_0.shape)
        else:
            eps = _keyed(tuple(x_0.shape[1:]), batch, seed, t, "noise")
        eps = eps.to(x_0)
        yield State(batch, denoiser.alpha[t].item() * x_0 + denoiser.sigma[t].item() * eps, t, eps)


def ddim_inversion(denoiser: Denoiser, batch: Batch, probe: Probe, seed: int) -> States:
    """Deterministic inversion of x_0, placed at t = 0. Each update uses eps at the time that it starts from.

    The updates go up the grid to the last state; every `probe.every`-th one gives a state, whose noise is
    (x_t - alpha_t x_0) / sigma_t.
    """
    x_0 = x_t = at_least_float32(required(batch.x_0, "x_0", "ddim_inversion"))
    times, seen = time_grid(probe.points), None
    if batch.path is not None:
        for x_t, t in zip(at_least_float32(batch.path).unbind(1), probe.states, strict=True):
            yield State(batch, x_t, t, _noise(denoiser, x_t, x_0, t))
        return
    for i in range(probe.last):
        prediction = _guided(denoiser, x_t, times[i], batch, probe, seen)
        x_t = ddim_step(denoiser, prediction, times[i], t := times[i + 1])
        seen = None
        if (i + 1) % probe.every == 0:
            seen = yield State(batch, x_t, t, _noise(denoiser, x_t, x_0, t))


def _noise(denoiser: Denoiser, x_t: Tensor, x_0: Tensor, t: int) -> Tensor:
    return (x_t - denoiser.alpha[t].item() * x_0) / denoiser.sigma[t].item()


def sampling(denoiser: Denoiser, batch: Batch, probe: Probe, seed: int) -> States:
    """DDIM down the grid from x_T ~ N(0, I), keyed by (seed, sample id); its states are at the times of inversion."""
    times, x_t = time_grid(probe.points), _start(denoiser, batch, probe, seed)
    for i in range(len(times) - 1, probe.every, -1):
        seen = (yield State(batch, x_t, times[i])) if i % probe.every == 0 and i <= probe.last else None
        x_t = _down(denoiser, batch, probe, seed, x_t, i, seen)
    yield State(batch, x_t, times[probe.every])


def generate(denoiser: Denoiser, batch: Batch, probe: Probe, seed: int) -> Float[Tensor, "b c *space"]:
    """The images at the end of the path of `sampling`: x_0 predicted at the last point of the grid."""
    return _descend(denoiser, batch, probe, seed, _start(denoiser, batch, probe, seed), probe.points - 1)


def finish(denoiser: Denoiser, end: PathEnd, probe: Probe, seed: int) -> Float[Tensor, "b c *space"]:
    """The images of `generate`, up to rounding, from where `sampling` with the same probe and seed has ended."""
    return _descend(denoiser, end.state.batch, probe, seed, end.state.x_t, probe.every, end.prediction)


def _descend(
    denoiser: Denoiser, batch: Batch, probe: Probe, seed: int, x_t: Tensor, first: int, seen: Prediction | None = None
) -> Tensor:
    """x_0 predicted at the end of the grid, from x_t at its point `first`. `seen`: the prediction there, if known."""
    for i in range(first, 0, -1):
        x_t = _down(denoiser, batch, probe, seed, x_t, i, seen if i == first else None)
    return _guided(denoiser, x_t, 0, batch, probe).x_0


def _start(denoiser: Denoiser, batch: Batch, probe: Probe, seed: int) -> Tensor:
    x_t = _keyed(denoiser.shape, batch, seed, time_grid(probe.points)[-1], "x_T")
    return x_t.to(denoiser.device, torch.promote_types(denoiser.dtype, x_t.dtype))


def _down(
    denoiser: Denoiser, batch: Batch, probe: Probe, seed: int, x_t: Tensor, i: int, seen: Prediction | None = None
) -> Tensor:
    """One update of the path of `sampling`, from point i of the grid to i - 1. `seen`: the prediction, if known."""
    times = time_grid(probe.points)
    prediction = _guided(denoiser, x_t, times[i], batch, probe, seen)
    noise = _keyed(denoiser.shape, batch, seed, times[i], "eta").to(x_t) if probe.eta > 0 else None
    return ddim_step(denoiser, prediction, times[i], times[i - 1], probe.eta, noise)


@torch.no_grad()
def _guided(
    denoiser: Denoiser, x_t: Tensor, t: int, batch: Batch, probe: Probe, seen: Prediction | None = None
) -> Prediction:
    return guided(denoiser, x_t, t, batch.cond, batch.negative, probe.guidance, seen)


def _keyed(shape: tuple[int, ...], batch: Batch, seed: int, t: int, purpose: str) -> Tensor:
    return torch.stack([normal(shape, seed, sample, purpose, t) for sample in batch.ids])


def walk(path: States, visit: Callable[[State], Prediction]) -> PathEnd:
    """Call `visit` at every state of a path, which has at least one. Returns the last state, and the prediction at it.

    The path's next update reuses the prediction that `visit` returns.
    """
    state = next(path)
    while True:
        prediction = visit(state)
        try:
            state = path.send(prediction)
        except StopIteration:
            return PathEnd(state, prediction)


TRAJECTORIES: dict[str, Trajectory] = {
    "forward_noise": forward_noise,
    "ddim_inversion": ddim_inversion,
    "sampling": sampling,
}
