"""Layers whose rows are not one for each sample, against one plain backward per sample."""

import logging

import pytest
import torch
from torch import Tensor, nn

from concept_trak.attribution.denoiser import attributable
from concept_trak.attribution.gradients.pull_back import pull_back, pull_back_naive
from concept_trak.attribution.state import Batch, Direction, State
from tests.tolerances import EXACT64
from tests.toys import Toy


class Joined(nn.Module):
    """Samples of 1 + label tokens, joined along the first dimension before its layers, as Z-Image joins captions."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 8)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 72)

    def tokens(self, x: Tensor, label: Tensor) -> list[Tensor]:
        tokens = x.reshape(-1, 9, 8) + self.label(label)[:, None]
        return [own[: int(n) + 1] for own, n in zip(tokens, label, strict=True)]

    def forward(self, x: Tensor, t: float, label: Tensor) -> Tensor:
        tokens = self.tokens(x, label)
        joined = torch.tanh(self.mix(self.norm(torch.cat(tokens)))).split([len(own) for own in tokens])
        mean = torch.stack([own.mean(0) for own in joined])
        return x * t + self.out(mean).reshape(x.shape)


class Position(nn.Module):
    """A layer over 6 positions that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.label, self.mix, self.out = nn.Embedding(4, 8), nn.Linear(8, 8), nn.Linear(8, 72)

    def forward(self, x: Tensor, t: float, label: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.eye(6, 8, dtype=x.dtype)))
        return self.out(torch.tanh(x.flatten(1)[:, :8] + h.sum(0) + self.label(label))).reshape(x.shape)


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


@pytest.mark.parametrize("labels", [[0, 2], [3, 0], [2, 2], [1, 0, 3, 3, 0, 1], [0] * 17 + [3] * 17])
def test_samples_of_unequal_length_that_are_joined_are_not_mixed(labels, caplog):
    """Also where the rows divide evenly by the samples, and in a batch whose samples need two digits."""
    denoiser = opened(Joined())
    with caplog.at_level(logging.WARNING):
        fast, slow = gradients(denoiser, labels)
    for name in slow:
        torch.testing.assert_close(fast[name], slow[name], rtol=EXACT64, atol=1e-11, msg=name)
    assert "no layer rule" not in caplog.text, "joined samples have layer rules"


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_rows_that_all_samples_share_are_not_dealt_out_among_them(b, caplog):
    denoiser = opened(Position())
    with caplog.at_level(logging.WARNING):
        fast, slow = gradients(denoiser, list(range(b)))
    for name in slow:
        torch.testing.assert_close(fast[name], slow[name], rtol=EXACT64, atol=1e-11, msg=name)
    assert ("no layer rule" in caplog.text) == (b > 1)
