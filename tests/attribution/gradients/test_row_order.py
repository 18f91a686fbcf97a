"""Layers whose rows are not one for each sample, against one plain backward per sample."""

import logging

import pytest
import torch
from torch import Tensor, nn

from tests.attribution.gradients.networks import gradients, opened
from tests.tolerances import EXACT64


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
