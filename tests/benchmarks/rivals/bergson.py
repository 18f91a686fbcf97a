"""bergson: hooks on linear layers with tokens, two random matrices a layer; it takes no convolution.

So it competes on the gradients of attention alone, through its Python interface.
"""

from typing import Any

import torch
from bergson.collector.gradient_collectors import TraceCollector
from bergson.gradients import GradientProcessor
from torch import nn

from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import Net, Work

FLOAT = 4


def build(work: Work, dim: int) -> Round:
    """dim x dim numbers a layer."""
    net, batches = Net(work), work.rows()
    chosen: Any = net
    chosen.device, chosen.dtype = torch.device("cpu"), torch.float32
    names = {name for name, m in net.named_modules() if isinstance(m, nn.Linear) and list(m.parameters(recurse=False))}
    collector = TraceCollector(
        model=chosen, processor=GradientProcessor(projection_dim=dim), target_modules=names, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip

    def round() -> Output:
        collector.mod_grads.clear()
        with collector:
            for x_t, text, eps in batches:
                net.zero_grad()
                (eps - net(x_t, text)).square().flatten(1).mean(1).sum().backward()
        layers = [torch.cat(rows).flatten(1) for rows in collector.mod_grads.values()]
        phi = torch.cat(layers, 1)
        return Output(phi, stored=FLOAT * phi.shape[1])

    return round
