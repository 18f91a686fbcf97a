"""Every published formula written out in plain torch, one sample at a time: the second implementation of every row.

Shared with the first are the model itself (its call, alpha, sigma), the encodings and the keyed noise; nothing of
trajectory, direction, gradient, features, weight, fisher or scoring is. Losses are the published losses, targets
detached, and autograd differentiates them: no v is formed. A row's names are looked up here; a name that is missing
fails with what to add.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from concept_trak.attribution.denoiser import Condition, Denoiser, take_rows
from concept_trak.attribution.method import Method
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.state import Batch, Probe


@dataclass(frozen=True)
class One:
    """A sample with its conditions, all tensors with one row; `without` is the concept's, `x_0` the image's."""

    id: str
    cond: Condition
    negative: Condition
    without: Condition | None = None
    x_0: Tensor | None = None
    others: tuple[Condition, ...] = ()
    target: Tensor | None = None
    classifier: Callable[[Tensor], Tensor] | None = None


def ones(batch: Batch) -> list[One]:
    return [
        One(
            name,
            take_rows(batch.cond, slice(i, i + 1)),
            take_rows(batch.negative, slice(i, i + 1)),
            None if batch.without is None else take_rows(batch.without, slice(i, i + 1)),
            None if batch.x_0 is None else batch.x_0[i : i + 1],
            tuple(take_rows(other, slice(i, i + 1)) for other in batch.others),
            None if batch.target is None else batch.target[i : i + 1],
            batch.classifier,
        )
        for i, name in enumerate(batch.ids)
    ]


class Stand(NamedTuple):
    """x_t at t, and the noise that makes it from x_0 where x_0 is known."""

    x_t: Tensor
    t: int
    eps: Tensor | None = None


def eps_of(model: Denoiser, x_t: Tensor, t: int, cond: Condition) -> Tensor:
    return model(x_t, t, cond).eps


def levels(model: Denoiser, t: int) -> tuple[float, float]:
    return model.alpha[t].item(), model.sigma[t].item()


def noise(model: Denoiser, *parts: str | int) -> Tensor:
    return normal(model.shape, *parts)[None].to(model.dtype)


def updated(model: Denoiser, one: One, x_t: Tensor, t: int, s: int, guidance: float) -> Tensor:
    """x_s = alpha_s (x_t - sigma_t e) / alpha_t + sigma_s e with e = eps_neg + g (eps_c - eps_neg)."""
    with torch.no_grad():
        unconditional = eps_of(model, x_t, t, one.negative)
        e = unconditional + guidance * (eps_of(model, x_t, t, one.cond) - unconditional)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(model, t), levels(model, s)
    return alpha_s * (x_t - sigma_t * e) / alpha_t + sigma_s * e


def ddim_times(probe: Probe) -> list[int]:
    return [int(999 * i // (probe.points - 1)) for i in range(probe.points)]


def forward_noise(model: Denoiser, one: One, probe: Probe, seed: int) -> list[Stand]:
    """x_t = alpha_t x_0 + sigma_t eps, one noise per t for all samples."""
    assert probe.noise == "shared"
    stands = []
    for t in probe.times:
        eps = noise(model, seed, "shared", t)
        stands.append(Stand(model.alpha[t].item() * one.x_0 + model.sigma[t].item() * eps, t, eps))
    return stands


def ddim_inversion(model: Denoiser, one: One, probe: Probe, seed: int) -> list[Stand]:
    """From x_0, taken for x at t = 0, up the grid; kept after every `every`-th update, short of pure noise."""
    times, x_t, stands = ddim_times(probe), one.x_0, []
    for i in range(1, probe.points - 1):
        x_t = updated(model, one, x_t, times[i - 1], times[i], probe.guidance)
        if i % probe.every == 0:
            alpha, sigma = levels(model, times[i])
            stands.append(Stand(x_t, times[i], (x_t - alpha * one.x_0) / sigma))
    return stands


def descent(model: Denoiser, one: One, probe: Probe, seed: int) -> list[tuple[int, Tensor]]:
    """Every (i, x_t) of DDIM (eta = 0) down the grid, from the sample's own x_T to the last point, t = 0."""
    assert probe.eta == 0
    times = ddim_times(probe)
    seen = [(len(times) - 1, noise(model, seed, one.id, "x_T", times[-1]))]
    for i in range(len(times) - 1, 0, -1):
        seen.append((i - 1, updated(model, one, seen[-1][1], times[i], times[i - 1], probe.guidance)))
    return seen


def sampling(model: Denoiser, one: One, probe: Probe, seed: int) -> list[Stand]:
    times, kept = ddim_times(probe), range(probe.every, probe.points - 1, probe.every)
    return [Stand(x_t, times[i]) for i, x_t in descent(model, one, probe, seed) if i in kept]


def generated(model: Denoiser, one: One, seed: int) -> Tensor:
    """The image of 51 points of unguided DDIM: the x_0 seen at t = 0, as float32 hands it on."""
    _, x_t = descent(model, one, Probe("sampling", "concept_reward"), seed)[-1]
    alpha, sigma = levels(model, 0)
    with torch.no_grad():
        x_0 = (x_t - sigma * eps_of(model, x_t, 0, one.cond)) / alpha
    return x_0.float().to(model.dtype)


def denoising_error(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """TRAK: mean (eps - eps_theta)^2."""
    return (at.eps - eps_of(model, at.x_t, at.t, one.cond)).square().mean()


def prediction(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """D-TRAK: mean eps_theta^2."""
    return eps_of(model, at.x_t, at.t, one.cond).square().mean()


def prediction_sign(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """DAS as in the Concept-TRAK authors' code: mean |eps_theta|."""
    return eps_of(model, at.x_t, at.t, one.cond).abs().mean()


def reconstruction_reward(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """Concept-TRAK, train side: mean (sg[eps_theta + grad_x r] - eps_theta)^2, r = mean (x_0hat - x_0)^2."""
    alpha, sigma = levels(model, at.t)
    x_t = at.x_t.detach().clone().requires_grad_()
    seen = eps_of(model, x_t, at.t, one.cond)
    r = ((x_t - sigma * seen) / alpha - one.x_0).square().mean()
    (slope,) = torch.autograd.grad(r, x_t, retain_graph=True)
    return ((seen + slope).detach() - seen).square().mean()


def contrast(model: Denoiser, one: One, at: Stand, against: Condition, strength: float) -> Tensor:
    """mean (sg[eps_c + w (eps_c - eps_against)] - eps_c)^2."""
    seen = eps_of(model, at.x_t, at.t, one.cond)
    target = (seen + strength * (seen - eps_of(model, at.x_t, at.t, against))).detach()
    return (target - seen).square().mean()


def concept_reward(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """Concept-TRAK, query side: against the condition without the concept."""
    assert one.without is not None
    return contrast(model, one, at, one.without, probe.strength)


def caption_reward(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """The same against the model's negative, for a sample's own caption."""
    return contrast(model, one, at, one.negative, probe.strength)


def caption_fit(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """mean (sg[eps_c + w / m sum_j a_j (eps_c - eps_j)] - eps_c)^2 over m negatives, with `shares` a_j; where all of
    these are 0, so that the state counts 0, with a_j = 1."""
    seen, every = eps_of(model, at.x_t, at.t, one.cond), [one.negative, *one.others]
    target = seen.detach().clone()
    found = shares(model, one, at, probe)
    for a, negative in zip(found if any(found) else [1.0] * len(every), every, strict=True):
        target += probe.strength / len(every) * a * (seen - eps_of(model, at.x_t, at.t, negative)).detach()
    return (target - seen).square().mean()


@torch.no_grad()
def shares(model: Denoiser, one: One, at: Stand, probe: Probe) -> list[float]:
    """a_j = clip(<eps - eps_j, eps_c - eps_j> / |eps_c - eps_j|^2, 0, 1), a coefficient of least squares; 0 where its
    standard error, root mean (eps - eps_c)^2 / |eps_c - eps_j|, is above `doubt`."""
    found, own = [], eps_of(model, at.x_t, at.t, one.cond)
    for condition in (one.negative, *one.others):
        negative = eps_of(model, at.x_t, at.t, condition)
        way = own - negative
        coefficient = ((at.eps - negative) * way).sum().div((way * way).sum()).clamp(0, 1).item()
        error = (at.eps - own).square().mean().sqrt().div(way.norm()).item()
        found.append(coefficient if error <= probe.doubt else 0.0)
    return found


@torch.no_grad()
def fit(model: Denoiser, one: One, at: Stand, probe: Probe) -> float:
    """How much a state counts: sum_j a_j |eps_c - eps_j| / sum_j |eps_c - eps_j| under caption_fit, else 1."""
    if probe.direction != "caption_fit":
        return 1.0
    own, part, whole = eps_of(model, at.x_t, at.t, one.cond), 0.0, 0.0
    for a, condition in zip(shares(model, one, at, probe), (one.negative, *one.others), strict=True):
        length = (own - eps_of(model, at.x_t, at.t, condition)).norm().item()
        part, whole = part + a * length, whole + length
    return part / whole


def seen_x_0(model: Denoiser, one: One, at: Stand) -> Tensor:
    """(x_t - sigma eps_theta) / alpha."""
    alpha, sigma = levels(model, at.t)
    return (at.x_t - sigma * eps_of(model, at.x_t, at.t, one.cond)) / alpha


def example_reward(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """mean (x_0hat - m)^2 against the examples' mean."""
    return (seen_x_0(model, one, at) - one.target).square().mean()


def classifier_reward(model: Denoiser, one: One, at: Stand, probe: Probe) -> Tensor:
    """-log p(y | x_0hat)."""
    assert one.classifier is not None
    return -one.classifier(seen_x_0(model, one, at)).sum()


def unweighted(model: Denoiser, one: One, stands: list[Stand]) -> float:
    return 1.0


def squared_error(model: Denoiser, one: One, stands: list[Stand]) -> float:
    """DAS: sum_t mean (eps - eps_theta)^2."""
    with torch.no_grad():
        return sum((s.eps - eps_of(model, s.x_t, s.t, one.cond)).square().mean().item() for s in stands)


PATHS: dict[str, Callable[[Denoiser, One, Probe, int], list[Stand]]] = {
    "forward_noise": forward_noise,
    "ddim_inversion": ddim_inversion,
    "sampling": sampling,
}
LOSSES: dict[str, Callable[[Denoiser, One, Stand, Probe], Tensor]] = {
    "denoising_error": denoising_error,
    "prediction": prediction,
    "prediction_sign": prediction_sign,
    "reconstruction_reward": reconstruction_reward,
    "concept_reward": concept_reward,
    "caption_reward": caption_reward,
    "caption_fit": caption_fit,
    "example_reward": example_reward,
    "classifier_reward": classifier_reward,
}
FACTORS: dict[str, Callable[[Denoiser, One, list[Stand]], float]] = {
    "one": unweighted,
    "squared_error": squared_error,
}


def twin(table: dict[str, Callable], name: str, what: str) -> Callable:
    """The written-out form of a name in a row."""
    if name not in table:
        raise AssertionError(
            f"the {what} {name!r} of a row of METHODS has no written-out twin: write its published formula as plain "
            "loops or as a loss into tests/written_out.py, from the source and not from the code"
        )
    return table[name]


def gradient(model: Denoiser, loss: Tensor) -> Tensor:
    """[k], parameters in their order."""
    slopes = torch.autograd.grad(loss, list(model.parameters.values()), materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


def scaled(model: Denoiser, g: Tensor, row: Method) -> Tensor:
    """A gradient as the row says: as it is, over its norm, or each layer's part over that part's norm, tempered."""
    if not row.unit:
        return g
    if row.over == "all":
        return g / g.norm()
    parts = dict(zip(model.parameters, g.split([p.numel() for p in model.parameters.values()]), strict=True))
    layers = {name: name[: max(0, name.rfind("."))] for name in parts}
    size = {layer: torch.cat([p for n, p in parts.items() if layers[n] == layer]).norm() for layer in layers.values()}
    for layer, own in size.items():
        size[layer] = (
            own.pow(row.exponent) * g.norm().pow(1 - row.exponent) if own > 1e-5 * g.norm() else own * torch.inf
        )
    return torch.cat([p / size[layers[n]] for n, p in parts.items()])


def feature(model: Denoiser, one: One, probe: Probe, row: Method, seed: int) -> tuple[Tensor, list[Stand]]:
    """phi = sum over states of grad L, divided by its norm where the row says so, times its fit; and the states."""
    stands = twin(PATHS, probe.trajectory, "trajectory")(model, one, probe, seed)
    loss = twin(LOSSES, probe.direction, "direction")
    rows = [(gradient(model, loss(model, one, at, probe)), fit(model, one, at, probe)) for at in stands]
    return sum((a * scaled(model, g, row) for g, a in rows), torch.zeros(())), stands


def train_side(model: Denoiser, row: Method, ones: list[One], seed: int) -> tuple[Tensor, Tensor]:
    """phi [n, k] and the weights [n]."""
    weigh, phi, weights = twin(FACTORS, row.weight, "weight"), [], []
    for one in ones:
        made, stands = feature(model, one, row.train, row, seed)
        phi.append(made)
        weights.append(weigh(model, one, stands))
    return torch.stack(phi), torch.tensor(weights, dtype=torch.float64)


def query_side(model: Denoiser, row: Method, ones: list[One], seed: int) -> Tensor:
    """phi_q [k], the mean over the query's samples; a row that needs images takes those generated for them."""
    if row.query.trajectory != "sampling":
        ones = [One(o.id, o.cond, o.negative, o.without, generated(model, o, seed)) for o in ones]
    return torch.stack([feature(model, one, row.query, row, seed)[0] for one in ones]).mean(0)


def scores(phi: Tensor, weights: Tensor, phi_q: Tensor, damping: float) -> Tensor:
    """w_i phi_q^T (K + lambda I)^-1 phi_i with K = sum_i phi_i phi_i^T and lambda = damping tr(K) / k."""
    k = phi.shape[1]
    curvature = torch.zeros(k, k, dtype=torch.float64)
    for row in phi:
        curvature += torch.outer(row, row)
    lam = damping * sum(curvature[i, i].item() for i in range(k)) / k
    inverse_phi = torch.linalg.solve(curvature + lam * torch.eye(k, dtype=torch.float64), phi.T)
    return weights * (phi_q @ inverse_phi)
