"""How many samples fit in memory at a time: the free memory over what one more sample needs.

What a sample needs is the difference between a batch of two and a batch of one, at the state that needs most (a
reward's: a graph that two backwards pass through, and a norm). Weights and tables exist once and do not count. The
bytes of living tensors are counted, which are the same on every device; `SHARE` leaves room for what kernels allocate
inside and for what an allocator cannot use. The result is a first guess: a batch that does not fit is halved.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from concept_trak.attribution.denoiser import Denoiser, blank_condition
from concept_trak.attribution.features import compute_features_together
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.method import FeatureSpec
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector, Tables
from concept_trak.attribution.state import Batch, Probe

SHARE = 0.6
MOST = 256  # a larger batch makes no device faster, and few shards have more samples
LARGEST_STATE = FeatureSpec(Probe("forward_noise", "reconstruction_reward", times=(500,)), unit=True)


def fitting_batch_size(
    denoiser: Denoiser, projector: Projector, methods: int, memory: int | None = None, workers: int = 1
) -> int:
    """The largest power of two in 1 ... MOST of samples that need at most `SHARE` of the memory.

    Args:
        methods: number of methods computed together; each has a sum of its own.
        memory: bytes that may be used; all that are free if not given.
        workers: number of workers that share the free memory of a CPU.
    """
    tables = Tables()
    # The first batch draws the tables, which do not count.
    _, first, second = (peak_tensor_bytes(denoiser, projector, methods, b, tables) for b in (1, 1, 2))
    available = memory or free_bytes(denoiser.device) // (workers if denoiser.device.type == "cpu" else 1)
    fits = 1 + max(0, int(SHARE * available) - first) // max(1, second - first)
    return 1 << min(fits, MOST).bit_length() - 1


def peak_tensor_bytes(
    denoiser: Denoiser, projector: Projector, methods: int, b: int, tables: Tables | None = None
) -> int:
    """The largest number of bytes of tensors that exist at one time while features of b samples are computed."""
    ids = tuple(f"sample-{i}" for i in range(b))
    dtype = torch.promote_types(denoiser.dtype, torch.float32)
    x_0 = torch.stack([normal(denoiser.shape, sample) for sample in ids]).to(denoiser.device, dtype)
    texts = denoiser.combinations or ("",)
    cond, negative = (blank_condition(denoiser, [text] * b) for text in (texts[0], texts[-1]))
    batch = Batch(ids=ids, cond=cond, negative=negative, x_0=x_0)
    with _LivingBytes() as living:
        compute_features_together(denoiser, projector, [LARGEST_STATE] * methods, batch, 0, Workspace(tables))
    return living.most


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated: on a GPU including what PyTorch has reserved and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


class _LivingBytes(TorchDispatchMode):
    """While open, `most` is the largest sum of bytes of the storages that were created since and exist at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._current = 0
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        existing = {_address(storage) for storage in _storages((args, kwargs))}  # a weight's view is not new
        for storage in _storages(result):
            self._count(storage, existing)
        return result

    def _count(self, storage: torch.UntypedStorage, existing: set[int]) -> None:
        address = _address(storage)
        if address not in self._bytes and address not in existing:
            self._bytes[address] = storage.nbytes()
            self._current += storage.nbytes()
            self.most = max(self.most, self._current)
            weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self._current -= self._bytes.pop(address, 0)


def _address(storage: torch.UntypedStorage) -> int:
    """Of the C++ object. Private to PyTorch, but Python's own id is new for every view, and data_ptr may be shared."""
    return storage._cdata


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor))
