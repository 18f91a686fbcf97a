"""One backward pass of a batch, split by sample, from the recorded calls of all layers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from concept_trak.attribution.gradients.broadcast import BroadcastUse, Following, followed_parameters
from concept_trak.attribution.gradients.factors import DenseGradient, ParameterGradient
from concept_trak.attribution.gradients.layer_rules import (
    LayerCall,
    is_separable,
    per_sample_gradients,
    record_call,
    with_rows_in_order,
)
from concept_trak.attribution.gradients.rows import RowOrder, row_order, row_samples
from concept_trak.attribution.gradients.workspace import LayerNames


@dataclass(frozen=True)
class Recording:
    """What a forward pass did: the calls of each layer, and the parameters that a module used without a layer."""

    calls: dict[nn.Module, list[LayerCall]]
    followings: dict[nn.Module, dict[str, Following]]


@contextmanager
def recorded_pass(layers: LayerNames) -> Iterator[Recording]:
    """Record every use of the parameters of these modules until the block ends."""
    calls: dict[nn.Module, list[LayerCall]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(module, []).append(record_call(module, args, kwargs, output))

    # Before all other hooks: one of a divided network moves the output to another device.
    handles = [module.register_forward_hook(note, with_kwargs=True, prepend=True) for module in layers]
    try:
        with followed_parameters(layers) as followings:
            yield Recording(calls, followings)
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class LayerUse:
    """One call of a layer. names: each parameter's name in the model, by its name in the layer."""

    layer: nn.Module
    call: LayerCall
    names: dict[str, str]

    @property
    def output(self) -> Tensor:
        return self.call.output

    def gradients(self, g: Tensor, b: int, order: RowOrder | None) -> dict[str, ParameterGradient]:
        """The gradients by the parameters' names in the model, from the gradient g at the output.

        Args:
            order: of the rows, if those of b samples are not together.
        """
        call = self.call
        if order is not None:
            call, g = with_rows_in_order(call, order), order.gradient(g)
        gradients = per_sample_gradients(self.layer, call, g, b, self.names)
        return {self.names[n]: gradient for n, gradient in gradients.items()}


class SeparableLayers:
    """The layers whose calls all split by sample, and the parameters that no other layer uses.

    Args:
        parameters: the attributable parameters by name.
        layers: the modules that own them.
        recording: of these modules' forward pass with a batch.
        b: samples in the batch.
    """

    def __init__(self, parameters: Mapping[str, Tensor], layers: LayerNames, recording: Recording, b: int) -> None:
        self._b, self._parameters = b, parameters
        followings = [f for own in recording.followings.values() for f in own.values() if f.splits(b)]
        broadcast = {m: {n for n, f in own.items() if f.splits(b)} for m, own in recording.followings.items()}
        names = {m: {n: name for n, name in layers[m].items() if n not in broadcast.get(m, ())} for m in layers}
        calls = {m: own for m, own in recording.calls.items() if names[m]}
        separable = {m for m, own in calls.items() if all(is_separable(m, call, b) for call in own)}
        excluded = {name for m in calls if m not in separable for name in names[m].values()}
        names = {m: {n: name for n, name in own.items() if name not in excluded} for m, own in names.items()}
        self._uses: list[LayerUse | BroadcastUse] = [
            LayerUse(m, call, names[m]) for m, own in calls.items() if m in separable for call in own
        ]
        self._uses += [use for f in followings if f.name not in excluded for use in f.uses]

    def gradients(self, eps: Tensor, v: Tensor, keep_graph: bool) -> dict[str, ParameterGradient]:
        """The gradients by parameter, from v at eps; those of tied parameters and of repeated calls are added."""
        joined = [j for j, use in enumerate(self._uses) if use.output.shape[0] > self._b > 1]
        outputs = [use.output for use in self._uses]
        once_more = keep_graph or bool(joined)
        slopes = torch.autograd.grad(eps, outputs, v, allow_unused=True, retain_graph=once_more) if outputs else ()
        orders, shared = self._row_orders(eps, v, {j: g for j in joined if (g := slopes[j]) is not None}, keep_graph)
        parts: dict[str, list[ParameterGradient]] = {name: [] for use in self._uses for name in use.names.values()}
        with torch.no_grad():
            for j, (use, g) in enumerate(zip(self._uses, slopes, strict=True)):
                if g is not None and shared.isdisjoint(use.names.values()):
                    for name, gradient in use.gradients(g, self._b, orders.get(j)).items():
                        parts[name].append(gradient)
        return {name: self._added(name, gradients, v) for name, gradients in parts.items() if name not in shared}

    def _row_orders(
        self, eps: Tensor, v: Tensor, joined: dict[int, Tensor], keep_graph: bool
    ) -> tuple[dict[int, RowOrder | None], set[str]]:
        """The order of the rows of each use with more rows than samples, and the parameters of shared rows."""
        if not joined:
            return {}, set()
        outputs = [self._uses[j].output for j in joined]
        samples = dict(zip(joined, row_samples(eps, v, outputs, list(joined.values()), keep_graph), strict=True))
        shared = {name for j, own in samples.items() if own is None for name in self._uses[j].names.values()}
        return {j: row_order(own, self._b) for j, own in samples.items() if own is not None}, shared

    def _added(self, name: str, gradients: Sequence[ParameterGradient], v: Tensor) -> ParameterGradient:
        if len(gradients) == 1:
            return gradients[0]
        if gradients:
            return DenseGradient(torch.stack([g.dense() for g in gradients]).sum(0))
        p = self._parameters[name]
        return DenseGradient(torch.zeros((), dtype=v.dtype, device=p.device).expand(self._b, *p.shape))
