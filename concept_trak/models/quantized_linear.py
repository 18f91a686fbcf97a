"""Linear layers whose frozen weights stay quantized in memory, as the base of an adapter.

    y = W x + b,    dL/dx = W^T dL/dy,    W = dequantize(stored numbers), in the forward pass and again in the backward

W exists only during each of the two products, so a network takes the memory of its stored numbers and of one layer.
The stored numbers have no gradients; those of the adapter's matrices are exact with respect to W.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [o, i] as numbers of a few bits.

    Attributes:
        shape: (o, i).
        stored: the stored tensors by name: packed numbers, scales.
        dequantize: from these tensors, on any device, to the weight [o, i] in the file's own precision.
    """

    shape: tuple[int, int]
    stored: Mapping[str, Tensor]
    dequantize: Callable[[Mapping[str, Tensor]], Tensor]


class QuantizedLinear(nn.Linear):
    """A linear layer that computes its weight whenever it is used.

    It is an `nn.Linear`, so that peft adds the same adapters to it as to any other. The stored tensors are buffers of
    bytes: `to(device)` moves them, and `to(dtype)` does not round scales to the precision of the network.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self._dequantize = weight.dequantize
        self._kinds = {name: (value.dtype, value.shape) for name, value in weight.stored.items()}
        for name, value in weight.stored.items():
            self.register_buffer(f"stored_{name}", value.contiguous().reshape(-1).view(torch.uint8), persistent=False)
        self.precision: Tensor
        self.register_buffer("precision", torch.empty(0), persistent=False)  # `to(dtype)` gives it the network's
        self.bias: Any = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight [o, i], dequantized in the file's precision and then in the network's."""
        stored = {name: getattr(self, f"stored_{name}").view(kind).view(shape) for name, (kind, shape) in
                  self._kinds.items()}  # fmt: skip
        with torch.no_grad():
            return self._dequantize(stored).to(self.precision.dtype)

    def forward(self, input: Tensor) -> Tensor:
        product: Any = DequantizedProduct.apply(input, self)
        return product


class DequantizedProduct(torch.autograd.Function):
    """x W^T + b with a weight that is dequantized in each pass, so that no graph keeps it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad_outputs[0] @ ctx.layer.weight, None


def is_quantized(network: nn.Module) -> bool:
    return any(isinstance(layer, QuantizedLinear) for layer in network.modules())
