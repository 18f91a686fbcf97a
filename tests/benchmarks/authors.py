"""The way of Concept-TRAK's authors, written out from a description of it as a reference to be measured against.

For each state: one pass through the network for the reward's slope in x_t, then `vmap(grad)` of the loss, which runs
the network again; rows of full width, divided by their norms and added up; at the end k of their coordinates. Guided
inversion has both conditions in one batch and 49 updates, of which every fifth state is kept and the last four updates
are not needed. Left out, in its favour: emptying caches in the inner loop, and making the mask.

(Park et al., ICLR 2026; constants that unit norms cancel are kept where they cost nothing.)
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from concept_trak.attribution.projector import Projector
from concept_trak.attribution.state import Batch, required
from tests.benchmarks.contestants import Output, Round
from tests.benchmarks.work import SEED, Net, Work

RESCALED = 1e4  # against underflow in float16
FLOAT = 4


def build(work: Work, dim: int) -> Round:
    """Features with the coordinates that the library's mask keeps, so that rows can be compared one by one."""
    net, path = Net(work).requires_grad_(False), PATHS[work.task.probe.trajectory]
    keep, grow = kept(work, dim)

    def round() -> Output:
        phi = torch.cat([_summed(net, path(work, net, batch), batch)[:, keep] * grow for batch in work.batches])
        return Output(phi, stored=FLOAT * dim)

    return round


def kept(work: Work, dim: int) -> tuple[Tensor, float]:
    """Which coordinates the library's mask keeps, read off what it makes of the numbers 0, 1, 2, ..."""
    counted, start = {}, 0
    for name, p in work.denoiser.parameters.items():
        counted[name] = torch.arange(start, start + p.numel(), dtype=torch.float64).reshape(1, *p.shape)
        start += p.numel()
    grow = (start / dim) ** 0.5
    return (Projector("mask", dim, SEED)(counted)[0] / grow).round().long(), grow


def _summed(net: Net, states: Iterator[tuple[Tensor, int]], batch: Batch) -> Tensor:
    total: Tensor | None = None
    for x_t, t in states:
        rows = _rows(net, x_t, t, batch, _guidance(net, x_t, t, batch))
        length = rows.norm(dim=1, keepdim=True)
        rows = torch.where(length > 0, rows / length, rows)
        total = rows if total is None else total + rows
    assert total is not None
    return total


def _guidance(net: Net, x_t: Tensor, t: int, batch: Batch) -> Tensor:
    """-grad_{x_t} mean (x_0hat - x_0)^2: a pass of its own."""
    alpha, sigma = _levels(net, t)
    x_t = x_t.detach().requires_grad_()
    x_0 = (x_t - sigma * net(x_t, batch.cond["text"], t)) / alpha
    (slope,) = torch.autograd.grad((x_0 - batch.x_0).square().flatten(1).mean(1).sum(), x_t)
    return -slope


def _rows(net: Net, x_t: Tensor, t: int, batch: Batch, guidance: Tensor) -> Tensor:
    """[b, d]: the gradient of mean (sg[eps - guidance] - eps)^2 of each sample apart."""
    names = [name.removeprefix("network.") for name, _ in net.named_parameters()]
    parameters = {f"network.{name}": net.network.get_parameter(name).detach() for name in names}

    def loss(parameters: dict[str, Tensor], x_t: Tensor, text: Tensor, guidance: Tensor) -> Tensor:
        eps = functional_call(net, parameters, (x_t[None], text[None], t))[0]
        return RESCALED * ((eps - guidance).detach() - eps).square().mean()

    rows = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, x_t, batch.cond["text"], guidance)
    return torch.cat([g.flatten(1) for g in rows.values()], 1)


def _noised(work: Work, net: Net, batch: Batch) -> Iterator[tuple[Tensor, int]]:
    for state in work.states(batch):
        yield state.x_t, state.t


def _inverted(work: Work, net: Net, batch: Batch) -> Iterator[tuple[Tensor, int]]:
    """DDIM up the grid to its end, eta 0; states after every fifth update are kept."""
    probe, found = work.task.probe, []
    times = [999 * i // (probe.points - 1) for i in range(probe.points)]
    x_t, text = required(batch.x_0, "x_0", "inversion"), torch.cat([batch.cond["text"], batch.negative["text"]])
    for i in range(1, probe.points - 1):
        t, s = times[i - 1], times[i]
        with torch.no_grad():
            eps, negative = net(x_t.repeat(2, 1, 1, 1), text, t).chunk(2)
        eps = negative + probe.guidance * (eps - negative)
        (alpha, sigma), (alpha_s, sigma_s) = _levels(net, t), _levels(net, s)
        x_t = alpha_s * (x_t - sigma * eps) / alpha + sigma_s * eps
        if i % probe.every == 0:
            found.append((x_t, s))
    yield from found


def _levels(net: Net, t: int) -> tuple[float, float]:
    return net.ask[0].alpha[t].item(), net.ask[0].sigma[t].item()


PATHS: dict[str, Callable[[Work, Net, Batch], Iterator[tuple[Tensor, int]]]] = {
    "forward_noise": _noised,
    "ddim_inversion": _inverted,
}
