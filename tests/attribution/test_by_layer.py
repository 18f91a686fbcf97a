"""The joint table: a score is the sum of its layers', and a layer's part is what the layer alone would score."""

import pytest
import torch

from concept_trak.attribution.by_layer import layer_columns
from concept_trak.attribution.denoiser import ROOT, layer_of
from concept_trak.attribution.projector import Projector

SIZES = {"a.weight": (3, 4), "a.bias": (3,), "b.0.weight": (5, 2), "gain": (2,)}
COUNTS = {name: torch.Size(shape).numel() for name, shape in SIZES.items()}


def gradients(only: str = "") -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = {n: torch.randn(6, *shape, generator=draw, dtype=torch.float64) for n, shape in SIZES.items()}
    return {n: g if not only or layer_of(n) == only else torch.zeros_like(g) for n, g in made.items()}


@pytest.mark.parametrize("projector", [Projector("identity"), Projector("mask", 9, seed=3)])
def test_a_score_is_the_sum_of_its_layers(projector):
    found, phi = layer_columns(projector, COUNTS), projector(gradients())
    assert found.names == ("a", "b.0", ROOT)
    z, weight = torch.randn(phi.shape[1], dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    parts = found.split(phi, weight, z)
    torch.testing.assert_close(parts.sum(1), weight * (phi @ z), rtol=1e-12, atol=1e-12)
    for j, layer in enumerate(found.names):
        alone = weight * (projector(gradients(layer)) @ z)
        torch.testing.assert_close(parts[:, j], alone, rtol=1e-12, atol=1e-12)


def test_a_projector_that_mixes_layers_is_refused():
    with pytest.raises(ValueError, match=r"projector=sketch mixes all layers.*projector=identity, projector=mask"):
        layer_columns(Projector("sketch", 8), COUNTS)
