"""A network of a test as a denoiser, and its gradients both ways."""

import torch
from torch import Tensor, nn

from concept_trak.attribution.denoiser import attributable
from concept_trak.attribution.gradients.pull_back import pull_back, pull_back_naive
from concept_trak.attribution.state import Batch, Direction, State
from tests.toys import Toy


def opened(network: nn.Module) -> Toy:
    denoiser = Toy()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for p in network.parameters():
            nn.init.normal_(p)
    denoiser.network = network.double()
    denoiser.parameters = attributable(denoiser.network, "all")
    return denoiser


def gradients(denoiser: Toy, labels: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By `pull_back`, and one sample at a time."""
    draw = torch.Generator().manual_seed(2)
    x_t = torch.randn(len(labels), *denoiser.shape, generator=draw, dtype=torch.float64)
    noise = torch.randn(x_t.shape, generator=draw, dtype=torch.float64)
    cond = {"label": torch.tensor(labels)}
    batch = Batch(tuple(map(str, labels)), cond, cond, x_t, None)

    def towards(state: State, seen) -> Direction:
        v = seen.eps.detach() - state.noise
        return Direction(v, torch.ones(len(v)))

    state = State(batch=batch, x_t=x_t, t=500, noise=noise)
    return pull_back(denoiser, state, [towards])[0].dense(), pull_back_naive(denoiser, state, towards)[0]
