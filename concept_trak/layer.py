"""What one layer knows of each sample apart: from its inputs and the gradient at its output to its own parameters'.

A rule holds for an exact type (a subclass may compute anything). A layer without one is run again alone, sample by
sample, between its captured input and output gradient: exact, and cheap where the layer is small.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Replayed outputs that differ by more than this (relative) mean that the layer's inputs cannot be told apart by sample.
REPLAYED = 1e-4


@dataclass(frozen=True)
class Call:
    """One call of a layer: what went in and what came out, all samples together."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def ruled(layer: nn.Module) -> bool:
    """Whether a rule covers it: its exact type, and for convolutions padding with zeros."""
    odd = isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros")
    return type(layer) in RULES and not odd


def separable(layer: nn.Module, call: Call, b: int) -> bool:
    """Whether each of b samples has rows of its own in a call, so that the layer's gradient can be split by sample."""
    y = call.output
    if not isinstance(y, Tensor) or not y.requires_grad or y.dim() == 0:
        return False
    if ruled(layer):
        return y.shape[0] % b == 0 and call.args[0].shape[0] == y.shape[0]
    with torch.no_grad():
        return y.shape[0] == b and _same(torch.cat([layer(*args, **kwargs) for args, kwargs in _apart(call, b)]), y)


def per_sample(layer: nn.Module, call: Call, g: Tensor, b: int) -> dict[str, Tensor]:
    """[b, *shape] for each own parameter of a layer that `separable` holds for; g is the gradient at its output."""
    own = dict(layer.named_parameters(recurse=False))
    if not ruled(layer):
        return _replayed(layer, call, g, own, b)
    rule, x = RULES[type(layer)], call.args[0].detach()
    return {name: rule(layer, name, x, g, b).reshape(b, *p.shape) for name, p in own.items()}


def _replayed(layer: nn.Module, call: Call, g: Tensor, own: dict[str, nn.Parameter], b: int) -> dict[str, Tensor]:
    wanted = {name: p for name, p in own.items() if p.requires_grad}
    rows = []
    for i, (args, kwargs) in enumerate(_apart(call, b)):
        with torch.enable_grad():
            y = layer(*args, **kwargs)
        slopes = torch.autograd.grad(y, list(wanted.values()), g[i : i + 1], allow_unused=True)
        rows.append([torch.zeros_like(p) if s is None else s for p, s in zip(wanted.values(), slopes, strict=True)])
    return {name: torch.stack([row[j] for row in rows]) for j, name in enumerate(wanted)}


def _apart(call: Call, b: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each sample: tensors with b rows are cut, everything else is shared."""

    def row(value: Any, i: int) -> Any:
        mine = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == b
        return value.detach()[i : i + 1] if mine else value

    return [
        (tuple(row(a, i) for a in call.args), {name: row(a, i) for name, a in call.kwargs.items()}) for i in range(b)
    ]


def _same(again: Tensor, y: Tensor) -> bool:
    return again.shape == y.shape and bool((again - y).norm() <= REPLAYED * y.norm())


def _linear(layer: nn.Linear, own: str, x: Tensor, g: Tensor, b: int) -> Tensor:
    x, g = x.reshape(b, -1, x.shape[-1]), g.reshape(b, -1, g.shape[-1])
    return g.sum(1) if own == "bias" else torch.bmm(g.transpose(1, 2), x)


def _conv2d(layer: nn.Conv2d, own: str, x: Tensor, g: Tensor, b: int) -> Tensor:
    """Weight [o, i / groups, p, q]: for each group, output gradients times the patches they saw."""
    if own == "bias":
        return g.reshape(b, -1, *g.shape[1:]).sum((1, 3, 4))
    assert not isinstance(layer.padding, str), "_ruled leaves named paddings to the naive twin"
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    patches = patches.reshape(len(x) * layer.groups, -1, patches.shape[-1])
    g = g.reshape(len(x) * layer.groups, -1, patches.shape[-1])
    return torch.bmm(g, patches.transpose(1, 2)).reshape(b, len(x) // b, -1).sum(1)


def _normalised(layer: nn.Module, own: str, g: Tensor, x_hat: Tensor, keep: int, b: int) -> Tensor:
    product = g if own == "bias" else g * x_hat
    product = product.movedim(1, -1) if isinstance(layer, nn.GroupNorm) else product
    return product.reshape(b, -1, keep).sum(1)


def _group_norm(layer: nn.GroupNorm, own: str, x: Tensor, g: Tensor, b: int) -> Tensor:
    return _normalised(layer, own, g, F.group_norm(x, layer.num_groups, eps=layer.eps), layer.num_channels, b)


def _layer_norm(layer: nn.LayerNorm, own: str, x: Tensor, g: Tensor, b: int) -> Tensor:
    x_hat = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    return _normalised(layer, own, g, x_hat, layer.weight.numel(), b)


def _embedding(layer: nn.Embedding, own: str, x: Tensor, g: Tensor, b: int) -> Tensor:
    rows, g = x.reshape(b, -1), g.reshape(b, -1, layer.embedding_dim)
    total = g.new_zeros(b, layer.num_embeddings, layer.embedding_dim)
    return total.scatter_add_(1, rows[..., None].expand_as(g), g)


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
