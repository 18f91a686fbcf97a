"""A denoising network divided among the GPUs of one worker, for networks that are larger than one.

A network is a sequence of blocks. Each block is on one device, with everything in it, and moves what it is given there
before it runs. Results that the network itself combines, such as those of embedders, and its own result go back to the
first device. PyTorch's backward pass goes the same way back, so the gradient of a parameter is on the device of the
parameter (`attribution/gradients/accumulate.py`).
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

LISTS = (nn.ModuleList, nn.ModuleDict)


def divide(network: nn.Module, devices: Sequence[str]) -> None:
    """Put the blocks of a network on several devices, with about as many bytes on each.

    The children that are no lists, such as embedders, come first, then the entries of lists, in order. The parameters
    that the network itself owns are on the first device, so the results that they meet come back there: all but those
    that one entry of a list passes to the next.

    Args:
        network: its weights are moved in place.
        devices: at least one, such as `cuda:0`, `cuda:1`.
    """
    children = list(network.children())
    blocks = [m for m in children if not isinstance(m, LISTS)] + list(
        _entries(m for m in children if isinstance(m, LISTS))
    )
    passing = {entry for m in children if isinstance(m, nn.ModuleList) for entry in list(m)[:-1]}
    first = torch.device(devices[0])
    sizes = [sum(tensor.nbytes for tensor in chain(block.parameters(), block.buffers())) for block in blocks]
    total, before = max(1, sum(sizes)), 0
    for block, size in zip(blocks, sizes, strict=True):
        # A block belongs to the device that its middle falls on.
        device = torch.device(devices[int((before + size / 2) / total * len(devices))])
        nn.Module.to(block, device)
        block.register_forward_pre_hook(partial(_move_arguments, device), with_kwargs=True)
        if block not in passing:
            block.register_forward_hook(partial(_move_result, first))
        before += size
    network._apply(lambda tensor: tensor.to(first), recurse=False)
    network.register_forward_hook(partial(_move_result, first))


def _entries(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, LISTS):
            yield from _entries(module.children())
        else:
            yield module


def _move_arguments(device: torch.device, block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _on(device, (args, kwargs))


def _move_result(device: torch.device, module: nn.Module, args: Any, result: Any) -> Any:
    return _on(device, result)


def _on(device: torch.device, values: Any) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)
