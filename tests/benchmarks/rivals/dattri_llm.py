"""dattri-llm: hooks that keep each layer's inputs and output gradients, or numbers made of these straight away."""

from typing import Any

import torch
from dattri_llm.gradient.callbacks import CaptureCallback
from dattri_llm.gradient.hooks import REGISTER_ALL, HookManager, HookManagerConfig
from torch import Tensor, nn

from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import Net, Work

NORMS = (nn.GroupNorm, nn.LayerNorm)


def build(work: Work, style: str, dim: int) -> Round:
    """style: "" (the factors as they are), mask, dense or logra, with `dim` numbers (logra: squared) a layer."""
    net, batches, callback = Net(work), work.rows(), CaptureCallback()
    manager = HookManager(net, callbacks=[callback], config=_config(net, style, dim))

    def round() -> Output:
        with manager.collect():
            rows = [_rows(net, callback, *batch) for batch in batches]
        sizes = [sum(t.numel() * t.element_size() for t in _tensors(row)) for row in rows]
        flat = None if not style else torch.cat([torch.cat([_flat(v) for v in row.values()], 1) for row in rows])
        return Output(flat, stored=sum(sizes) // work.n)

    return round


def _config(net: Net, style: str, dim: int) -> HookManagerConfig:
    """A norm's gradient is no outer product, so under logra it is masked."""
    if not style:
        return HookManagerConfig(linear_io=REGISTER_ALL)
    own: dict[str, Any] = {"style": style, "proj_dim": dim}
    if style != "mask":
        own |= {"proj_max_batch_size": 8, "proj_type": "normal"}
    norms = [name for name, module in net.named_modules() if isinstance(module, NORMS)] if style == "logra" else []
    masked = {name: {"style": "mask", "proj_dim": dim * dim} for name in norms}
    auto = {"capture_style": "materialized"} if style == "logra" else {}
    return HookManagerConfig(linear_io=REGISTER_ALL, projection_kwargs={"__default__": own, **masked}, **auto)


def _rows(net: Net, callback: CaptureCallback, x_t: Tensor, text: Tensor, eps: Tensor) -> dict[str, Any]:
    net.zero_grad()
    (eps - net(x_t, text)).square().flatten(1).mean(1).sum().backward()
    assert callback.record is not None
    return dict(callback.record.gradient.data)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [t for one in value for t in _tensors(one)]
    return _tensors(list(vars(value).values())) if hasattr(value, "__dict__") else []


def _flat(value: Any) -> Tensor:
    (tensor,) = _tensors(value)
    return tensor.flatten(1).float()
