"""Per-sample J(s)^T v(s): the direction pulled back to every attributable parameter, for each sample apart.

The layers' inputs and the gradients at their outputs hold the per-sample gradient of every linear, convolution, norm
and embedding (Goodfellow 2015): one forward, one backward to the activations, one product per layer. What no layer
rule covers goes through the naive twin, which is also the oracle.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.denoiser import Denoiser, Prediction
from concept_trak.state import State

Gradients = dict[str, Float[Tensor, "b ..."]]  # by parameter name: [b, *parameter.shape]
Pointer = Callable[[State, Prediction], Tensor]  # a direction with its denoiser and probe already given
Call = tuple[Tensor, Tensor]  # a layer's input and output

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
        covered = {name: call for name, call in calls.items() if _per_sample(call, len(v))}
        outputs = [y for call in covered.values() for _, y in call]
        slopes = iter(torch.autograd.grad(seen.eps, outputs, v, allow_unused=True) if outputs else ())
    gradients: Gradients = {}
    with torch.no_grad():
        for name, call in covered.items():
            layer = denoiser.network.get_submodule(name)
            _add_layer(gradients, name, layer, [(x, next(slopes)) for x, _ in call], denoiser, len(v))
    rest = [name for name in denoiser.parameters if name not in gradients]
    if rest:
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
def _captured(denoiser: Denoiser) -> Iterator[dict[str, list[Call]]]:
    """While open, every call of a layer that owns attributable parameters is noted as (input, output)."""
    calls: dict[str, list[Call]] = {}
    owners = {name.rpartition(".")[0] for name in denoiser.parameters}

    def note(name: str):
        return lambda _, args, output: calls.setdefault(name, []).append((args[0], output))

    layers = {name: denoiser.network.get_submodule(name) for name in owners}
    handles = [layer.register_forward_hook(note(n)) for n, layer in layers.items() if _ruled(layer)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _ruled(layer: nn.Module) -> bool:
    """Whether a rule covers it: its exact type (a subclass may compute anything), padded with zeros."""
    odd = isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros")
    return type(layer) in RULES and not odd


def _per_sample(call: list[Call], b: int) -> bool:
    """Whether each sample has its own rows in every call: the layer's output can then be split by sample."""
    return all(y.requires_grad and y.shape[0] % b == 0 and x.shape[0] == y.shape[0] for x, y in call)


def _add_layer(
    gradients: Gradients,
    prefix: str,
    layer: nn.Module,
    calls: list[tuple[Tensor, Tensor | None]],
    denoiser: Denoiser,
    b: int,
) -> None:
    for own, _ in layer.named_parameters(recurse=False):
        name = f"{prefix}.{own}" if prefix else own
        if name not in denoiser.parameters:
            continue
        shape = (b, *denoiser.parameters[name].shape)
        total = torch.zeros(shape, dtype=denoiser.dtype, device=denoiser.device)
        for x, g in calls:
            if g is not None:
                total += RULES[type(layer)](layer, own, x.detach(), g, b).reshape(shape)
        gradients[name] = total


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
