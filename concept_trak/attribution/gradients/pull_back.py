"""Per-sample J(s)^T v(s): the direction pulled back to every attributable parameter, for each sample apart.

The layers' inputs and the gradients at their outputs hold the per-sample gradient of every layer that
`layer_rules.py` can split (Goodfellow 2015): one forward, one backward to the activations, one product per layer, and
that only where it is needed. What no layer can split goes through one backward per sample, and the naive twin does
everything so: it is the oracle.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.attribution.denoiser import Denoiser, Prediction
from concept_trak.attribution.gradients.factors import DenseGradient, ParameterGradient
from concept_trak.attribution.gradients.layer_rules import LayerCall, is_separable, per_sample_gradients, record_call
from concept_trak.attribution.numerics import at_least_float32
from concept_trak.attribution.state import Direction, State

Gradients = dict[str, Float[Tensor, "b ..."]]  # by parameter name: [b, *parameter.shape]
DirectionAt = Callable[[State, Prediction], Direction]  # a direction with its denoiser and probe already given
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleGradients:
    """J(s)^T v(s) of b samples: `scale` times what `pieces` hold, by parameter name.

    v goes through the network divided by `scale`, a power of two that brings its largest entry near 1: a reward's v is
    of size 1e-7, which float16 does not know. In float32 this changes no digit.
    """

    pieces: dict[str, ParameterGradient]
    scale: Float[Tensor, " b"]
    seen: Prediction
    pointed: Direction

    def gradients(self) -> Gradients:
        """[b, *shape] of every parameter, multiplied out, at least float32: float16 may not know `scale`."""
        return {name: each(at_least_float32(p.whole()), self.scale) for name, p in self.pieces.items()}


def pull_back(denoiser: Denoiser, state: State, pointer: DirectionAt) -> SampleGradients:
    """J(s)^T v(s) of every sample, its prediction and its direction. Equals `pull_back_naive` up to rounding."""
    return pull_back_each(denoiser, state, [pointer])[0]


def pull_back_each(denoiser: Denoiser, state: State, pointers: Sequence[DirectionAt]) -> list[SampleGradients]:
    """The same for several directions from one state: one forward for all of them, one backward for each."""
    # Images as they are read have their channels last, and the rule of a group norm would copy what follows from that.
    state = state.at(state.x_t.detach().contiguous().requires_grad_())
    with torch.enable_grad():
        with _captured(denoiser) as calls:
            seen = denoiser(state.x_t, state.t, state.batch.cond)
        points = [pointer(state, seen) for pointer in pointers]
    layers = _Layers(denoiser, calls, len(state.x_t))
    found = []
    for i, pointed in enumerate(points):
        scale = _power_of_two(pointed.v)
        small = each(at_least_float32(pointed.v), 1 / scale).to(seen.eps.dtype)
        pieces = layers.pieces(seen.eps, small, last=i == len(points) - 1)
        if rest := [name for name in denoiser.parameters if name not in pieces]:
            _say_once(rest)
            pieces |= {name: DenseGradient(g) for name, g in _one_by_one(denoiser, state, small, rest).items()}
        ordered = {name: pieces[name] for name in denoiser.parameters}
        found.append(SampleGradients(ordered, scale, Prediction(seen.x_0.detach(), seen.eps.detach()), pointed))
    return found


def pull_back_naive(denoiser: Denoiser, state: State, pointer: DirectionAt) -> tuple[Gradients, Prediction, Tensor]:
    """The same, one sample and one plain backward at a time. Slow; kept because it cannot be wrong in a layer rule."""
    rows = []
    for i in range(len(state.x_t)):
        one = state.rows(slice(i, i + 1))
        one = one.at(one.x_t.detach().requires_grad_())
        with torch.enable_grad():
            seen = denoiser(one.x_t, one.t, one.batch.cond)
            v = pointer(one, seen).v
            rows.append((_backward(seen.eps, v, denoiser.parameters), seen, v.detach()))
    gradients = {name: torch.stack([row[0][name] for row in rows]) for name in denoiser.parameters}
    seen = Prediction(
        torch.cat([row[1].x_0.detach() for row in rows]), torch.cat([row[1].eps.detach() for row in rows])
    )
    return gradients, seen, torch.cat([row[2] for row in rows])


def each(value: Float[Tensor, "b ..."], factor: Float[Tensor, " b"]) -> Float[Tensor, "b ..."]:
    """Each sample's rows times its factor."""
    return value * factor.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1))


def _power_of_two(v: Tensor) -> Float[Tensor, " b"]:
    """The power of two next to each sample's largest entry; 1 where all are 0 or one is not finite."""
    largest = v.flatten(1).abs().amax(1).double()
    usable = (largest > 0) & largest.isfinite()
    return torch.exp2(torch.where(usable, largest, 1.0).log2().floor()).to(torch.promote_types(v.dtype, torch.float32))


@contextmanager
def _captured(denoiser: Denoiser) -> Iterator[dict[nn.Module, list[LayerCall]]]:
    """While open, every call of a module that owns an attributable parameter is noted."""
    calls: dict[nn.Module, list[LayerCall]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(module, []).append(record_call(module, args, kwargs, output))

    handles = [owner.register_forward_hook(note, with_kwargs=True) for owner in _owners(denoiser)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class _Layers:
    """The calls of one forward whose modules can all be split by sample."""

    def __init__(self, denoiser: Denoiser, calls: dict[nn.Module, list[LayerCall]], b: int) -> None:
        owners, self.parameters = _owners(denoiser), denoiser.parameters
        self.b, self.whole = b, {m: cs for m, cs in calls.items() if all(is_separable(m, c, b) for c in cs)}
        closed = {name for m in calls if m not in self.whole for name in owners[m].values()}
        self.own = {m: {n: name for n, name in owners[m].items() if name not in closed} for m in self.whole}

    def pieces(self, eps: Tensor, v: Tensor, last: bool) -> dict[str, ParameterGradient]:
        """What each parameter gets from v at eps; tied parameters and repeated calls add up under one name."""
        outputs = [call.output for called in self.whole.values() for call in called]
        slopes = iter(torch.autograd.grad(eps, outputs, v, allow_unused=True, retain_graph=not last) if outputs else ())
        found: dict[str, list[ParameterGradient]] = {name: [] for own in self.own.values() for name in own.values()}
        with torch.no_grad():
            for module, called in self.whole.items():
                for call, g in zip(called, slopes, strict=False):
                    if g is not None:
                        for n, piece in per_sample_gradients(module, call, g, self.b, self.own[module]).items():
                            found[self.own[module][n]].append(piece)
        return {name: self._joined(name, pieces, v.new_zeros) for name, pieces in found.items()}

    def _joined(
        self, name: str, pieces: Sequence[ParameterGradient], zeros: Callable[[tuple[()]], Tensor]
    ) -> ParameterGradient:
        """One piece of all of a parameter's; zeros where there are none."""
        if len(pieces) == 1:
            return pieces[0]
        if pieces:
            return DenseGradient(torch.stack([p.whole() for p in pieces]).sum(0))
        return DenseGradient(zeros(()).expand(self.b, *self.parameters[name].shape))


def _owners(denoiser: Denoiser) -> dict[nn.Module, dict[str, str]]:
    """Every module with attributable parameters of its own: by its name for each, the one name that it has where
    several modules share it. Kept, for looking through a network takes long beside a pass through a small one."""
    known, found = _known.get(denoiser), dict[nn.Module, dict[str, str]]()
    if known is not None and known[0] is denoiser.parameters:
        return known[1]
    names = {p: name for name, p in denoiser.parameters.items()}
    for module in denoiser.network.modules():
        if own := {n: names[p] for n, p in module.named_parameters(recurse=False) if p in names}:
            found[module] = own
    _known[denoiser] = denoiser.parameters, found
    return found


Owners = tuple[dict[str, nn.Parameter], dict[nn.Module, dict[str, str]]]
_known: WeakKeyDictionary[Denoiser, Owners] = WeakKeyDictionary()


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
