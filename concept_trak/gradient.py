"""Per-sample J(s)^T v(s): the direction pulled back to every attributable parameter, for each sample apart.

The layers' inputs and the gradients at their outputs hold the per-sample gradient of every layer that `layer.py` can
split (Goodfellow 2015): one forward, one backward to the activations, one product per layer. What no layer can split
goes through one backward per sample, and the naive twin does everything so: it is the oracle.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.denoiser import Denoiser, Prediction
from concept_trak.layer import Call, per_sample, separable
from concept_trak.state import State

Gradients = dict[str, Float[Tensor, "b ..."]]  # by parameter name: [b, *parameter.shape]
Pointer = Callable[[State, Prediction], Tensor]  # a direction with its denoiser and probe already given

log = logging.getLogger(__name__)


def pull_back(denoiser: Denoiser, state: State, pointer: Pointer) -> tuple[Gradients, Prediction, Tensor]:
    """(J(s)^T v(s) per sample, the prediction it stands on, v), from one forward graph.

    Equals `pull_back_naive` up to rounding, whatever the batch.
    """
    state = state.at(state.x_t.detach().requires_grad_())
    with torch.enable_grad():
        with _captured(denoiser) as calls:
            seen = denoiser(state.x_t, state.t, state.batch.cond)
        v = pointer(state, seen)
    gradients = _from_layers(denoiser, calls, seen.eps, v)
    if rest := [name for name in denoiser.parameters if name not in gradients]:
        _say_once(rest)
        gradients |= _one_by_one(denoiser, state, v, rest)
    ordered = {name: gradients[name] for name in denoiser.parameters}
    return ordered, Prediction(seen.x_0.detach(), seen.eps.detach()), v.detach()


def pull_back_naive(denoiser: Denoiser, state: State, pointer: Pointer) -> tuple[Gradients, Prediction, Tensor]:
    """The same, one sample and one plain backward at a time. Slow; kept because it cannot be wrong in a layer rule."""
    rows = []
    for i in range(len(state.x_t)):
        one = state.rows(slice(i, i + 1))
        one = one.at(one.x_t.detach().requires_grad_())
        with torch.enable_grad():
            seen = denoiser(one.x_t, one.t, one.batch.cond)
            v = pointer(one, seen)
            rows.append((_backward(seen.eps, v, denoiser.parameters), seen, v.detach()))
    gradients = {name: torch.stack([row[0][name] for row in rows]) for name in denoiser.parameters}
    seen = Prediction(
        torch.cat([row[1].x_0.detach() for row in rows]), torch.cat([row[1].eps.detach() for row in rows])
    )
    return gradients, seen, torch.cat([row[2] for row in rows])


def norm(gradients: Gradients) -> Float[Tensor, " b"]:
    """Euclidean norm of each sample's gradient over all parameters, accumulated in float32 or wider."""
    total = sum(g.flatten(1).to(_wide(g)).square().sum(1) for g in gradients.values())
    assert isinstance(total, Tensor), "no attributable parameter"
    return total.sqrt()


def _wide(g: Tensor) -> torch.dtype:
    return torch.promote_types(g.dtype, torch.float32)


@contextmanager
def _captured(denoiser: Denoiser) -> Iterator[dict[nn.Module, list[Call]]]:
    """While open, every call of a module that owns an attributable parameter is noted."""
    names = _names(denoiser)
    calls: dict[nn.Module, list[Call]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(module, []).append(Call(args, kwargs, output))

    owners = [m for m in denoiser.network.modules() if any(p in names for p in m.parameters(recurse=False))]
    handles = [owner.register_forward_hook(note, with_kwargs=True) for owner in owners]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _from_layers(denoiser: Denoiser, calls: dict[nn.Module, list[Call]], eps: Tensor, v: Tensor) -> Gradients:
    """The gradients of the parameters whose modules can all be split by sample; tied ones add up under one name."""
    b, names = len(v), _names(denoiser)
    whole = {m: called for m, called in calls.items() if all(separable(m, call, b) for call in called)}
    closed = {names[p] for m in calls if m not in whole for p in m.parameters(recurse=False) if p in names}
    outputs = [call.output for called in whole.values() for call in called]
    slopes = iter(torch.autograd.grad(eps, outputs, v, allow_unused=True) if outputs else ())
    gradients: Gradients = {}
    for module, called in whole.items():
        own = {
            n: names[p] for n, p in module.named_parameters(recurse=False) if names.get(p, None) not in (None, *closed)
        }
        for name in own.values():
            shape = (b, *denoiser.parameters[name].shape)
            gradients.setdefault(name, torch.zeros(shape, dtype=denoiser.dtype, device=denoiser.device))
        for call in called:
            g = next(slopes)
            if g is not None:
                with torch.no_grad():
                    for n, value in per_sample(module, call, g, b).items():
                        if n in own:
                            gradients[own[n]] += value
    return gradients


def _names(denoiser: Denoiser) -> dict[nn.Parameter, str]:
    """The one name of each attributable parameter, also where several modules share it."""
    return {p: name for name, p in denoiser.parameters.items()}


def _one_by_one(denoiser: Denoiser, state: State, v: Tensor, names: list[str]) -> Gradients:
    """Exact per-sample gradients of a few parameters, v held fixed: one forward and backward per sample."""
    chosen, rows = {name: denoiser.parameters[name] for name in names}, []
    for i in range(len(v)):
        one = state.rows(slice(i, i + 1))
        with torch.enable_grad():
            rows.append(_backward(denoiser(one.x_t, one.t, one.batch.cond).eps, v[i : i + 1], chosen))
    return {name: torch.stack([row[name] for row in rows]) for name in names}


def _backward(eps: Tensor, v: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    slopes = torch.autograd.grad(eps, list(parameters.values()), v, allow_unused=True)
    pairs = zip(parameters.items(), slopes, strict=True)
    return {name: torch.zeros_like(p) if slope is None else slope for (name, p), slope in pairs}


_said: set[str] = set()


def _say_once(names: list[str]) -> None:
    if fresh := [name for name in names if name not in _said]:
        _said.update(fresh)
        log.warning("no layer rule for %d parameters (%s, ...): exact but one sample at a time", len(fresh), fresh[0])
