"""What one layer knows of each sample apart: from its inputs and the gradient at its output to its own parameters'.

The gradients of matrices stay products (`factors.py`), and those of convolutions too (`conv2d.py`); everything else
is multiplied out. A rule holds for an exact type (a subclass may compute anything). A layer without one is run again
alone, sample by sample, between its captured input and output gradient: exact, and cheap where the layer is small.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concept_trak.attribution.gradients.conv2d import Conv2dGradient
from concept_trak.attribution.gradients.factors import DenseGradient, FactoredGradient, ParameterGradient
from concept_trak.attribution.numerics import at_least_float32

# Replayed outputs that differ by more than this (relative) mean that the layer's inputs cannot be told apart by sample.
REPLAYED = 1e-4


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: what went in and what came out, all samples together.

    `version` is the output's when it came out: of what is written over in place afterwards, the gradient is another's.
    `moments` are the mean and 1 / standard deviation that a group norm has found, [b, groups] each.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    version: int = 0
    moments: tuple[Tensor, Tensor] | None = None


def record_call(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> LayerCall:
    """A call at the moment it returns, while its node in the graph is its own and still holds what it saved."""
    node, version = getattr(output, "grad_fn", None), getattr(output, "_version", 0)
    if type(layer) is nn.GroupNorm and node is not None and node.name() == "NativeGroupNormBackward0":
        return LayerCall(args, kwargs, output, version, (node._saved_result1, node._saved_result2))
    return LayerCall(args, kwargs, output, version)


def has_rule(layer: nn.Module) -> bool:
    """Whether a rule covers it: its exact type, and for convolutions padding with zeros."""
    odd = isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros")
    return type(layer) in RULES and not odd


def is_separable(layer: nn.Module, call: LayerCall, b: int) -> bool:
    """Whether each of b samples has rows of its own in a call, so that the layer's gradient can be split by sample."""
    y = call.output
    if not isinstance(y, Tensor) or not y.requires_grad or y.dim() == 0 or y._version != call.version:
        return False
    if has_rule(layer):
        return y.shape[0] % b == 0 and call.args[0].shape[0] == y.shape[0]
    with torch.no_grad():
        return y.shape[0] == b and _same(torch.cat([layer(*args, **kwargs) for args, kwargs in _apart(call, b)]), y)


def per_sample_gradients(
    layer: nn.Module, call: LayerCall, g: Tensor, b: int, wanted: Collection[str]
) -> dict[str, ParameterGradient]:
    """The gradients of its own parameters, of a layer that `separable` holds for; g is the gradient at its output."""
    if has_rule(layer):
        return RULES[type(layer)](layer, call, g, b, wanted)
    own = {name: p for name, p in layer.named_parameters(recurse=False) if name in wanted}
    return {name: DenseGradient(value) for name, value in _replayed(layer, call, g, own, b).items()}


def _replayed(layer: nn.Module, call: LayerCall, g: Tensor, own: dict[str, nn.Parameter], b: int) -> dict[str, Tensor]:
    rows = []
    for i, (args, kwargs) in enumerate(_apart(call, b)):
        with torch.enable_grad():
            y = layer(*args, **kwargs)
        slopes = torch.autograd.grad(y, list(own.values()), g[i : i + 1], allow_unused=True)
        rows.append([torch.zeros_like(p) if s is None else s for p, s in zip(own.values(), slopes, strict=True)])
    return {name: torch.stack([row[j] for row in rows]) for j, name in enumerate(own)}


def _apart(call: LayerCall, b: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each sample: tensors with b rows are cut, everything else is shared."""

    def row(value: Any, i: int) -> Any:
        mine = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == b
        return value.detach()[i : i + 1] if mine else value

    return [
        (tuple(row(a, i) for a in call.args), {name: row(a, i) for name, a in call.kwargs.items()}) for i in range(b)
    ]


def _same(again: Tensor, y: Tensor) -> bool:
    return again.shape == y.shape and bool((again - y).norm() <= REPLAYED * y.norm())


def _linear(
    layer: nn.Linear, call: LayerCall, g: Tensor, b: int, wanted: Collection[str]
) -> dict[str, ParameterGradient]:
    x, found = call.args[0].detach(), dict[str, ParameterGradient]()
    x, g = x.reshape(b, -1, x.shape[-1]), g.reshape(b, -1, g.shape[-1])
    if "weight" in wanted:
        found["weight"] = FactoredGradient(g, x, tuple(layer.weight.shape))
    if "bias" in wanted:
        found["bias"] = DenseGradient(at_least_float32(g).sum(1))
    return found


def _conv2d(
    layer: nn.Conv2d, call: LayerCall, g: Tensor, b: int, wanted: Collection[str]
) -> dict[str, ParameterGradient]:
    found: dict[str, ParameterGradient] = {}
    if "weight" in wanted:
        found["weight"] = _kernel(layer, call.args[0].detach(), g, b)
    if "bias" in wanted:
        found["bias"] = DenseGradient(at_least_float32(g).flatten(2).sum(2).reshape(b, -1, g.shape[1]).sum(1))
    return found


def _kernel(layer: nn.Conv2d, x: Tensor, g: Tensor, b: int) -> ParameterGradient:
    """A layer that looks at single pixels is linear in them."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1:
        g, x = (y.reshape(b, -1, *y.shape[1:]).transpose(2, -1).flatten(1, -2) for y in (g.flatten(2), x.flatten(2)))
        return FactoredGradient(g, x, tuple(layer.weight.shape))
    where: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)  # pairs: `ruled` has seen to padding
    return Conv2dGradient(x, g, b, layer.weight.shape, *where)


def _group_norm(
    layer: nn.GroupNorm, call: LayerCall, g: Tensor, b: int, wanted: Collection[str]
) -> dict[str, ParameterGradient]:
    """sum_p g_p x_hat_p = (sum_p g_p x_p - mean sum_p g_p) / deviation, by channel, as in the plain backward.

    It is the plain backward: n samples with as many groups each are one sample with n times the groups.
    """
    x, g = (at_least_float32(y).contiguous() for y in (call.args[0].detach(), g))
    mean, rate = (m.to(x.dtype).reshape(1, -1) for m in call.moments or _moments(layer, x))
    ones, both = x.new_ones(len(x) * layer.num_channels), ("weight", "bias")
    size = (1, len(ones), x[0, 0].numel(), mean.shape[1])
    _, *slopes = torch.ops.aten.native_group_norm_backward(g, x, mean, rate, ones, *size, (False, True, True))
    rows = (slope.view(b, -1, layer.num_channels).sum(1) for slope in slopes)
    return {name: DenseGradient(row) for name, row in zip(both, rows, strict=True) if name in wanted}


def _moments(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.reshape(len(x), layer.num_groups, -1), 2, correction=0)
    return mean, (variance + layer.eps).rsqrt()


def _layer_norm(
    layer: nn.LayerNorm, call: LayerCall, g: Tensor, b: int, wanted: Collection[str]
) -> dict[str, ParameterGradient]:
    found = {"bias": at_least_float32(g)} if "bias" in wanted else {}
    if "weight" in wanted:
        hat = F.layer_norm(at_least_float32(call.args[0].detach()), layer.normalized_shape, eps=layer.eps)
        found["weight"] = at_least_float32(g) * hat
    return {name: DenseGradient(value.reshape(b, -1, *layer.normalized_shape).sum(1)) for name, value in found.items()}


def _embedding(
    layer: nn.Embedding, call: LayerCall, g: Tensor, b: int, wanted: Collection[str]
) -> dict[str, ParameterGradient]:
    rows, g = call.args[0].reshape(b, -1), g.reshape(b, -1, layer.embedding_dim)
    total = at_least_float32(g).new_zeros(b, layer.num_embeddings, layer.embedding_dim)
    return {"weight": DenseGradient(total.scatter_add_(1, rows[..., None].expand_as(g), at_least_float32(g)))}


RULES: dict[type[nn.Module], Callable[..., dict[str, ParameterGradient]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
