"""Classifier files as a user writes them."""

import json

import torch
from safetensors.torch import save
from torch import Tensor


def saved(weights: dict[str, Tensor], architecture: str, classes: list[str], **more: str) -> bytes:
    said = {"architecture": architecture, "classes": json.dumps(classes), **more}
    return save({name: w.contiguous() for name, w in weights.items()}, said)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
