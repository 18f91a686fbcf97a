"""Several devices without several GPUs: tensors whose numbers are on the CPU, and whose device is a name.

A `PlacedTensor` is on `meta:0`, `meta:1`, ... Operations compute real numbers, and refuse tensors of two devices, as
CUDA does; only `to` and `copy_` move numbers. So a test sees both where each operation runs and what it computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
LAZY = {aten._conj.default: torch.conj_physical, aten._neg_view.default: torch.neg}
"""Marks on a tensor, which operations below the dispatch would not see."""


class PlacedTensor(Tensor):
    """Numbers on the CPU with the name of a device."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, device: torch.device) -> "PlacedTensor":
        layout = {"strides": numbers.stride(), "storage_offset": numbers.storage_offset(), "dtype": numbers.dtype}
        device = torch.device(device.type, device.index or 0)
        placed = Tensor._make_wrapper_subclass(cls, numbers.shape, device=device, **layout)  # pyright: ignore
        placed.numbers = numbers
        return placed

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def as_subclass(self, cls: type[Tensor]) -> Tensor:  # pyright: ignore
        """Of a class of the library as well, such as that of a parameter which is followed; still on its device."""
        both: Any = type(cls.__name__, (cls, PlacedTensor), {})  # pyright: ignore
        return PlacedTensor.__new__(both, self.numbers, self.device)

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        devices = {t.device for t in tensors if t.dim()} or {t.device for t in tensors}
        if len(devices) > 1 and func not in MOVES:
            raise RuntimeError(f"{func} of tensors on {sorted(map(str, devices))}")
        if func is aten._fused_sdp_choice.default:
            return 0  # attention in plain operations: the others are chosen by the kind of device
        if func in LAZY:
            return place(LAZY[func](args[0].numbers), args[0].device)
        device = args[0].device if func in MOVES else next(iter(devices))
        if kwargs.get("device") is not None:
            device, kwargs["device"] = torch.device(kwargs["device"]), torch.device("cpu")
        plain, plain_kwargs = tree_map(lambda v: v.numbers if isinstance(v, PlacedTensor) else v, (args, kwargs))
        result = func(*plain, **plain_kwargs)
        return return_and_correct_aliasing(func, args, kwargs, tree_map(lambda v: place(v, device), result))


def place(value: Any, device: torch.device | str) -> Any:
    """A tensor on a device; other values, and tensors on the CPU, as they are."""
    device = torch.device(device)
    return PlacedTensor(value, device) if isinstance(value, Tensor) and device.type != "cpu" else value


class _Dispatch(TorchDispatchMode):
    """Places what is made on a named device, or moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = torch.device(kwargs.get("device") or "cpu")
        if device.type == "cpu" or any(isinstance(value, PlacedTensor) for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        return place(func(*args, **{**kwargs, "device": torch.device("cpu")}), device)


class _Literals(TorchFunctionMode):
    """`torch.tensor` and `torch.as_tensor` of numbers, which no dispatch sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return place(func(*args, **{**kwargs, "device": "cpu"}), device)
        return func(*args, **kwargs)


@contextmanager
def placed_tensors() -> Iterator[None]:
    """In this context, `meta:0`, `meta:1`, ... are devices with numbers."""
    with _Dispatch(), _Literals():
        yield
