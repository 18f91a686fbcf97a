"""Rules that compute the per-sample gradients of a layer's parameters from its inputs and the gradient at its output.

The gradients of matrices stay factored (`factors.py`, `conv2d.py`); all others are dense. A rule applies to an exact
type, because a subclass may compute anything. A layer without a rule is run again on its own, sample by sample, from
its recorded inputs and output gradient. This is exact, and cheap for a small layer.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from concept_trak.attribution.gradients.conv2d import Conv2dGradient
from concept_trak.attribution.gradients.factors import DenseGradient, FactoredGradient, ParameterGradient
from concept_trak.attribution.gradients.rows import RowOrder
from concept_trak.attribution.numerics import at_least_float32

# The largest relative difference between a layer's replay and its output. Beyond it, samples depend on each other.
REPLAY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer with all samples of a batch.

    Attributes:
        version: autograd's count of in-place writes to the output when the layer returned it. A later count that is
            higher means that the gradient at the output belongs to the later contents.
        moments: for a group norm, its mean and 1 / standard deviation, [b, groups] each.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    version: int = 0
    moments: tuple[Tensor, Tensor] | None = None

    @property
    def input(self) -> Tensor:
        """The first argument, by place or by keyword, without its graph, on the device of the output."""
        # Where a model is divided among devices, a layer gets its input from the device before and moves it itself.
        return self.first.detach().to(self.output.device)

    @property
    def first(self) -> Any:
        """The first argument, by place or by keyword."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


def record_call(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> LayerCall:
    """Record a call while its autograd node still has its saved tensors.

    `_saved_result1` and `_saved_result2` are private to PyTorch. They make a second pass over the input unnecessary; if
    a version of PyTorch lacks them, the moments are computed again. `_version` is private too, because PyTorch has no
    public way to detect an in-place write.
    """
    node, version = getattr(output, "grad_fn", None), getattr(output, "_version", 0)
    moments = None
    if type(layer) is nn.GroupNorm and node is not None and node.name() == "NativeGroupNormBackward0":
        mean, rate = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
        moments = None if mean is None or rate is None else (mean, rate)
    return LayerCall(args=args, kwargs=kwargs, output=output, version=version, moments=moments)


def with_rows_in_order(call: LayerCall, order: RowOrder) -> LayerCall:
    """The call of a layer with a rule as if its rows had been given in another order."""
    return LayerCall(args=(call.input[order.index],), kwargs={}, output=call.output, version=call.version)


def has_rule(layer: nn.Module) -> bool:
    """Whether a rule covers the layer: its exact type and, for convolutions, padding with a number of zeros; those of
    three dimensions must cut their input into patches."""
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.Conv3d:
        return (layer.stride, layer.padding, layer.dilation, layer.groups) == (layer.kernel_size, (0,) * 3, (1,) * 3, 1)
    return _rule(layer) is not None


def _rule(layer: nn.Module) -> Any:
    return RULES.get(type(layer)) or NAMED_RULES.get(f"{type(layer).__module__}.{type(layer).__qualname__}")


def is_separable(layer: nn.Module, call: LayerCall, b: int) -> bool:
    """Whether each of b samples can have its own rows in the call, so that the layer's gradient splits by sample.

    If there are more rows than samples, `rows.py` has to measure which sample each row belongs to.
    """
    y = call.output
    if not isinstance(y, Tensor) or not y.requires_grad or y.dim() == 0 or y._version != call.version:
        return False
    if has_rule(layer):
        return y.shape[0] >= b and call.first.shape[0] == y.shape[0]
    with torch.no_grad():
        return y.shape[0] == b and _close(torch.cat([layer(*args, **kwargs) for args, kwargs in _apart(call, b)]), y)


def per_sample_gradients(
    layer: nn.Module, call: LayerCall, g: Float[Tensor, "n ..."], b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    """The gradients of the parameters `names` of a layer for which `is_separable` holds.

    Args:
        g: the gradient at the output of the call.
        names: names of parameters within the layer, such as `weight`.
    """
    if has_rule(layer):
        return _rule(layer)(layer, call, g, b, names)
    parameters = {name: p for name, p in layer.named_parameters(recurse=False) if name in names}
    return {name: DenseGradient(value) for name, value in _replayed(layer, call, g, parameters, b).items()}


def _replayed(
    layer: nn.Module, call: LayerCall, g: Tensor, parameters: dict[str, nn.Parameter], b: int
) -> dict[str, Tensor]:
    rows = []
    for i, (args, kwargs) in enumerate(_apart(call, b)):
        with torch.enable_grad():
            y = layer(*args, **kwargs)
        slopes = torch.autograd.grad(y, list(parameters.values()), g[i : i + 1], allow_unused=True)
        pairs = zip(parameters.values(), slopes, strict=True)
        rows.append([torch.zeros_like(p) if slope is None else slope for p, slope in pairs])
    return {name: torch.stack([row[j] for row in rows]) for j, name in enumerate(parameters)}


def _apart(call: LayerCall, b: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of each sample: its row of every tensor with b rows, and all other arguments unchanged."""

    def row(value: Any, i: int) -> Any:
        has_rows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == b
        return value.detach()[i : i + 1] if has_rows else value

    return [
        (tuple(row(a, i) for a in call.args), {name: row(a, i) for name, a in call.kwargs.items()}) for i in range(b)
    ]


def _close(replay: Tensor, y: Tensor) -> bool:
    return replay.shape == y.shape and bool((replay - y).norm() <= REPLAY_TOLERANCE * y.norm())


def _linear(
    layer: nn.Linear, call: LayerCall, g: Tensor, b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    return _of_rows(call.input, g, b, layer.weight.shape, names)


def _of_rows(x: Tensor, g: Tensor, b: int, shape: torch.Size, names: Collection[str]) -> dict[str, ParameterGradient]:
    """The gradients of y_p = W x_p + bias, with the numbers of x_p and y_p last and a weight of `shape`."""
    gradients = dict[str, ParameterGradient]()
    x, g = x.reshape(b, -1, x.shape[-1]), g.reshape(b, -1, g.shape[-1])
    if "weight" in names:
        gradients["weight"] = FactoredGradient(g, x, tuple(shape))
    if "bias" in names:
        gradients["bias"] = DenseGradient(at_least_float32(g).sum(1))
    return gradients


def _patches(
    layer: nn.Conv3d, call: LayerCall, g: Float[Tensor, "n o f y z"], b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    """A convolution that cuts its input into patches is a linear layer over them. It ignores what is left at an end."""
    patches = call.input
    for axis, size in enumerate(layer.kernel_size, 2):
        patches = patches.unfold(axis, size, size)
    patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    return _of_rows(patches, g.movedim(1, -1), b, layer.weight.shape, names)


def _conv2d(
    layer: nn.Conv2d, call: LayerCall, g: Tensor, b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    gradients: dict[str, ParameterGradient] = {}
    if "weight" in names:
        gradients["weight"] = _kernel(layer, call.input, g, b)
    if "bias" in names:
        gradients["bias"] = DenseGradient(_by_sample(at_least_float32(g).flatten(2).sum(2), b))
    return gradients


def _kernel(layer: nn.Conv2d, x: Tensor, g: Tensor, b: int) -> ParameterGradient:
    """A convolution of single pixels is a linear layer over them."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1:
        g, x = (y.reshape(b, -1, *y.shape[1:]).transpose(2, -1).flatten(1, -2) for y in (g.flatten(2), x.flatten(2)))
        return FactoredGradient(g, x, tuple(layer.weight.shape))
    padding: Any = layer.padding  # a pair: `has_rule` refuses words
    return Conv2dGradient(
        x=x,
        g=g,
        b=b,
        shape=layer.weight.shape,
        stride=layer.stride,
        padding=padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def _group_norm(
    layer: nn.GroupNorm, call: LayerCall, g: Tensor, b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    """sum_p g_p x_hat_p = (sum_p g_p x_p - mean sum_p g_p) / deviation, by channel.

    PyTorch's own backward computes it: n samples with some groups are one sample with n times as many groups.
    """
    x, g = (at_least_float32(y).contiguous() for y in (call.input, g))
    mean, rate = (m.to(x.dtype).reshape(1, -1) for m in call.moments or _moments(layer, x))
    channels = x.shape[0] * layer.num_channels
    ones, size = x.new_ones(channels), (1, channels, math.prod(x.shape[2:]), mean.shape[1])
    _, *slopes = torch.ops.aten.native_group_norm_backward(g, x, mean, rate, ones, *size, (False, True, True))
    rows = (_by_sample(slope.view(-1, layer.num_channels), b) for slope in slopes)
    return {name: DenseGradient(row) for name, row in zip(("weight", "bias"), rows, strict=True) if name in names}


def _by_sample(rows: Float[Tensor, "n c"], b: int) -> Float[Tensor, "b c"]:
    """The sum of each sample's rows."""
    return rows if rows.shape[0] == b else rows.view(b, -1, rows.shape[1]).sum(1)


def _moments(layer: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.reshape(len(x), layer.num_groups, -1), 2, correction=0)
    return mean, (variance + layer.eps).rsqrt()


def _layer_norm(
    layer: nn.LayerNorm, call: LayerCall, g: Tensor, b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    def normalized() -> Tensor:
        return F.layer_norm(at_least_float32(call.input), layer.normalized_shape, eps=layer.eps)

    return _scale_and_shift(normalized, g, b, layer.normalized_shape, names)


def _layer_norm_of_diffusers(layer: Any, call: LayerCall, g: Tensor, b: int, names: Collection[str]) -> dict[str, Any]:
    """As diffusers computes it: in float32 whatever the precision of x."""

    def normalized() -> Tensor:
        return at_least_float32(F.layer_norm(call.input.float(), layer.normalized_shape, eps=layer.eps))

    return _scale_and_shift(normalized, g, b, layer.normalized_shape, names)


def _rms_norm(layer: nn.RMSNorm, call: LayerCall, g: Tensor, b: int, names: Collection[str]) -> dict[str, Any]:
    def normalized() -> Tensor:
        x = call.input
        eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
        return F.rms_norm(at_least_float32(x), list(layer.normalized_shape), eps=eps)

    return _scale_and_shift(normalized, g, b, layer.normalized_shape, names)


def _rms_norm_of_diffusers(layer: Any, call: LayerCall, g: Tensor, b: int, names: Collection[str]) -> dict[str, Any]:
    """As diffusers computes it: the mean square over the last dimension, in float32 whatever the precision of x."""

    def normalized() -> Tensor:
        mean_square = call.input.to(torch.float32).square().mean(-1, keepdim=True)
        return at_least_float32(call.input * torch.rsqrt(mean_square + layer.eps))

    return _scale_and_shift(normalized, g, b, layer.weight.shape, names)


def _scale_and_shift(
    normalized: Callable[[], Tensor], g: Tensor, b: int, shape: Sequence[int], names: Collection[str]
) -> dict[str, ParameterGradient]:
    """sum_p g_p x_hat_p and sum_p g_p of y_p = weight x_hat_p + bias, with weight and bias of `shape`."""
    values = {"bias": at_least_float32(g)} if "bias" in names else {}
    if "weight" in names:
        values["weight"] = at_least_float32(g) * normalized()
    return {name: DenseGradient(value.reshape(b, -1, *shape).sum(1)) for name, value in values.items()}


def _embedding(
    layer: nn.Embedding, call: LayerCall, g: Tensor, b: int, names: Collection[str]
) -> dict[str, ParameterGradient]:
    rows, g = call.input.reshape(b, -1), g.reshape(b, -1, layer.embedding_dim)
    total = at_least_float32(g).new_zeros(b, layer.num_embeddings, layer.embedding_dim)
    return {"weight": DenseGradient(total.scatter_add_(1, rows[..., None].expand_as(g), at_least_float32(g)))}


RULES: dict[type[nn.Module], Callable[..., dict[str, ParameterGradient]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Conv3d: _patches,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.RMSNorm: _rms_norm,
}
NAMED_RULES: dict[str, Callable[..., dict[str, ParameterGradient]]] = {
    "diffusers.models.normalization.FP32LayerNorm": _layer_norm_of_diffusers,
    "diffusers.models.normalization.RMSNorm": _rms_norm_of_diffusers,
}
"""Rules of layers of diffusers, by name, because importing diffusers takes seconds."""
