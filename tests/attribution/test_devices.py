"""The same numbers on a GPU as on a CPU: projections of whole numbers bit by bit, sums to rounding."""

import pytest
import torch

from concept_trak.attribution import fisher, ranking
from concept_trak.attribution.gradients.accumulate import feature_sums
from concept_trak.attribution.gradients.factors import FactoredGradient
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.projector import PROJECTORS, Projector
from tests.attribution.test_projector import SHAPES, gradients
from tests.tolerances import DENSE32, EXACT64

pytestmark = pytest.mark.gpu
EXACT = ("identity", "mask", "sketch")  # no factor but a power of two, no division


@pytest.mark.parametrize("kind", PROJECTORS)
def test_projections_agree(kind):
    whole = {n: torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape) % 7 - 3 for n, x in gradients().items()}
    here, there = (Projector(kind, 16, 5)({n: g.to(device) for n, g in whole.items()}) for device in ("cpu", "cuda"))
    tolerance = 0 if kind in EXACT else EXACT64
    torch.testing.assert_close(there.cpu(), here, rtol=tolerance, atol=tolerance, msg=f"{kind} differs by device")


@pytest.mark.parametrize("kind", PROJECTORS)
def test_running_totals_agree(kind):
    draw = torch.Generator().manual_seed(1)
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    factors = {
        name: [torch.randn(2, 5, n, generator=draw, dtype=torch.float64) for n in (p.shape[0], p[0].numel())]
        for name, p in parameters.items()
    }
    found = []
    for device in ("cpu", "cuda"):
        there = {n: p.to(device) for n, p in parameters.items()}
        factored = {n: FactoredGradient(g.to(device), x.to(device), SHAPES[n]) for n, (g, x) in factors.items()}
        with feature_sums(Projector(kind, 40), there, 2, 1, Workspace()) as (total,):
            total.add(factored, torch.ones(2, device=device))
            found.append(total.phi().cpu())
    torch.testing.assert_close(*found, rtol=EXACT64, atol=EXACT64)


def test_grams_and_scores_agree():
    draw = torch.Generator().manual_seed(2)
    phi, z, weight = (torch.randn(*size, generator=draw) for size in ((500, 64), (3, 64), (500,)))
    here, there = fisher.gram(phi).matrix, fisher.gram(phi.cuda()).matrix.cpu()
    assert (here - there).abs().max() < DENSE32 * here.abs().max()
    here, there = ranking.scores(phi, weight, z), ranking.scores(phi.cuda(), weight.cuda(), z.cuda()).cpu()
    assert (here - there).abs().max() < DENSE32 * here.abs().max()
