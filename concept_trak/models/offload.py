"""Weights that are on the device only while they are used: those of text encoders and of the VAE.

A worker needs them for seconds of each batch. A large encoder, such as Flux's T5 of 9.5 GB in bfloat16, then takes no
memory from the gradients of the batch: the peak is the larger of encoding and of the gradients, not their sum. No
number changes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from concept_trak import UserError

SETTINGS = ("auto", "always", "never")
SHARE = 0.2
"""The share of a GPU's memory from which encoders leave it where the setting is `auto`."""


class OffloadedWeights:
    """The weights of a frozen module, which stay in the host's memory.

    Args:
        module: in the host's memory.
        device: where it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module, self._device, self._in_use = module, device, False

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Meanwhile the weights are copies on the device. Inside another such context it changes nothing."""
        if self._in_use:
            yield
            return
        tensors = list(_tensors(self._module))
        on_host = [tensor.data for tensor in tensors]
        self._in_use = True
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self._device, copy=True)
            yield
        finally:
            for tensor, data in zip(tensors, on_host, strict=True):
                tensor.data = data
            self._in_use = False


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module."""
    return sum(tensor.nbytes for tensor in _tensors(module))


def leaves_device(setting: str, modules: Iterable[nn.Module], device: torch.device) -> bool:
    """Whether encoders are on the device only while they encode.

    Args:
        setting: `always`, `never`, or `auto`: if they would take more than `SHARE` of the GPU's memory.
        modules: the encoders.

    Raises:
        UserError: the setting is another word.
    """
    if setting not in SETTINGS:
        raise UserError(f"model.offload={setting!r}; expected one of: {', '.join(SETTINGS)}")
    if setting != "auto" or device.type != "cuda":
        return setting == "always" and device.type != "cpu"
    return sum(map(weight_bytes, modules)) > SHARE * torch.cuda.get_device_properties(device).total_memory


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
