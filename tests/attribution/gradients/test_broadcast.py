"""Parameters that a network uses without a layer, against one plain backward per sample."""

import logging

import pytest
import torch
from torch import Tensor, nn

from concept_trak.attribution.gradients import broadcast, separable_layers
from concept_trak.attribution.gradients.broadcast import followed_parameters
from tests.attribution.gradients.networks import gradients, opened
from tests.tolerances import EXACT64


class Tables(nn.Module):
    """Shifts and scales, a gate, a table of positions and padding, as the transformers of diffusers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.label, self.pad = nn.Embedding(4, 8), nn.Parameter(torch.zeros(1, 8))
        self.table, self.gate = nn.Parameter(torch.zeros(2, 8)), nn.Parameter(torch.zeros(8))
        self.position = nn.Parameter(torch.zeros(1, 12, 8))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, t: float, label: Tensor) -> Tensor:
        shift, scale = (self.table[None] + self.label(label)[:, None]).chunk(2, dim=1)
        h = x.reshape(-1, 9, 8) + self.position[:, :9].to(x.dtype)
        h = self.layers[0](h) * (1 + scale) + shift
        h = self.padded(h, label) + torch.tanh(self.gate) * self.layers[1](h)
        for layer in self.layers[2:]:
            h = layer(h).tanh()
        return x * t + h.reshape(x.shape)

    def padded(self, h: Tensor, label: Tensor) -> Tensor:
        """Of 2 + label tokens, the rest padding; all samples joined along the first dimension."""
        mask = torch.cat([torch.arange(9) > 1 + int(n) for n in label])[:, None]
        return torch.where(mask, self.pad, h.flatten(0, 1)).reshape(h.shape)


class Matrix(Tables):
    """A parameter that no broadcasting combines with a batch, beside those of `Tables`."""

    def padded(self, h: Tensor, label: Tensor) -> Tensor:
        return h + h @ (self.gate[:, None] * self.pad)


def same(fast: dict[str, Tensor], slow: dict[str, Tensor]) -> None:
    for name in slow:
        torch.testing.assert_close(fast[name], slow[name], rtol=EXACT64, atol=1e-11, msg=name)


@pytest.mark.parametrize("labels", [[1], [0, 3], [2, 0, 1, 3, 1]])
def test_tables_gates_and_padding_are_split_by_sample(labels, caplog, monkeypatch):
    by_layer, layers = separable_layers.per_sample_gradients, set()

    def noted(layer, *more):
        layers.add(type(layer))
        return by_layer(layer, *more)

    monkeypatch.setattr(separable_layers, "per_sample_gradients", noted)
    with caplog.at_level(logging.WARNING):
        same(*gradients(opened(Tables()), labels))
    assert layers == {nn.Linear, nn.Embedding}, "the network was run again for each sample"
    assert "no layer rule" not in caplog.text


def test_a_parameter_that_is_used_in_another_way_too_is_still_exact():
    same(*gradients(opened(Matrix()), [1, 0, 2]))


def test_a_small_module_is_replayed(monkeypatch):
    monkeypatch.setattr(broadcast, "FEW", 9)
    network = Tables()
    with followed_parameters({network: {"gate": "gate"}}) as followings:
        assert not followings
    same(*gradients(opened(network), [1, 2]))


def test_the_parameters_are_the_networks_own_afterwards():
    network = Tables()
    before = dict(network.named_parameters())
    with followed_parameters({network: {"gate": "gate", "pad": "pad"}}):
        assert network.gate is not before["gate"]
        assert (network.gate.shape, network.gate.device) == ((8,), before["gate"].device)
    assert all(p is before[name] for name, p in network.named_parameters())
