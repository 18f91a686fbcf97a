"""How many samples fit in memory at a time: what is free, over what one more sample needs.

A sample's own need is the difference between a batch of two and a batch of one, at the dearest state there is (the
reward's: a graph that two backwards go through, and a norm); weights and tables, there once, do not count twice. The
bytes of living tensors are counted, the same on every device; what a kernel takes inside, and what an allocator cannot
use, is left for by `SHARE`. The first guess, no more: a batch that still does not fit is halved like any other.
"""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.features import FeatureSpec, features_of_each
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch, Probe

SHARE = 0.6
MOST = 256  # more samples at a time make no device faster, and a shard has few more
DEAREST = Probe("forward_noise", "reconstruction_reward", times=(500,))


def fitting_batch_size(
    denoiser: Denoiser, projector: Projector, sides: int, memory: int | None = None, beside: int = 1
) -> int:
    """The largest power of two of samples, 1 ... MOST, of which `peak` stays within `SHARE` of the memory.

    Args:
        sides: how many methods are computed together; each has a sum of its own.
        memory: bytes that may be used, if not all that are free.
        beside: workers that share what is free, on a CPU.
    """
    # The first makes the tables that are kept, and says nothing about a sample.
    _, one, two = (peak_tensor_bytes(denoiser, projector, sides, b) for b in (1, 1, 2))
    room = memory or free_bytes(denoiser.device) // (beside if denoiser.device.type == "cpu" else 1)
    fits = 1 + max(0, int(SHARE * room) - one) // max(1, two - one)
    return 1 << min(fits, MOST).bit_length() - 1


def peak_tensor_bytes(denoiser: Denoiser, projector: Projector, sides: int, b: int) -> int:
    """The most bytes of tensors that come to live together while b samples' features are made."""
    ids = tuple(f"room-{i}" for i in range(b))
    kind = torch.promote_types(denoiser.dtype, torch.float32)
    x_0 = torch.stack([normal(denoiser.shape, one) for one in ids]).to(denoiser.device, kind)
    batch = Batch(ids, denoiser.encode([denoiser.combinations[0] if denoiser.combinations else ""] * b),
                  denoiser.encode([denoiser.combinations[-1] if denoiser.combinations else ""] * b), x_0)  # fmt: skip
    with _Living() as living:
        features_of_each(denoiser, projector, [FeatureSpec(DEAREST, True)] * sides, batch, 0)
    return living.most


def free_bytes(device: torch.device) -> int:
    """Bytes: of a GPU what no one has reserved and what PyTorch holds empty; else what Linux calls available."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


class _Living(TorchDispatchMode):
    """While open: `most` is the largest sum of bytes of storages that were made since and lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        stood = {storage._cdata for storage in _storages((args, kwargs))}  # a weight's view is not new
        for storage in _storages(made):
            self._note(storage, stood)
        return made

    def _note(self, storage: torch.UntypedStorage, stood: set[int]) -> None:
        key = storage._cdata
        if key not in self._known and key not in stood:
            self._known[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._known.pop(key, 0)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor))
