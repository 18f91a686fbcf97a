"""Muon's step: singular vectors kept, singular values near 1; and torch's own, up to the precision it works in."""

import pytest
import torch
from torch import nn

from concept_trak.evaluation.training.optim import Muon, orthogonal

SHAPES = ((64, 64), (64, 128), (128, 64))
BFLOAT16 = 0.03
"""Five rounds in bfloat16 (unit roundoff 2^-8) are off by about 0.01 of a step; by more, the formulas differ."""


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_are_kept_and_singular_values_brought_near_one(shape):
    draw = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=draw), full_matrices=False)
    values = torch.logspace(-1.3, 0, len(vt))
    rows = u.T @ orthogonal((u * values) @ vt) @ vt.T
    assert (rows - rows.diag().diag()).abs().max() < 1e-4, "the iteration mixed singular vectors"
    assert rows.diag().min() > 0.6, f"singular values {rows.diag()}: not near 1"
    assert rows.diag().max() < 1.25, f"singular values {rows.diag()}: not near 1"


def test_matrices_of_one_shape_are_stepped_as_each_alone():
    draw = torch.Generator().manual_seed(2)
    starts = [torch.randn(shape, generator=draw) for shape in (*SHAPES, *SHAPES)]
    together, apart = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    optimizers = [Muon(together, lr=0.01), *(Muon([one], lr=0.01) for one in apart)]
    for _ in range(3):
        for one, other in zip(together, apart, strict=True):
            one.grad = other.grad = torch.randn(one.shape, generator=draw)
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, msg="a matrix's step depends on those of its shape beside it")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_steps_are_those_of_torch_to_bfloat16(shape):
    draw = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=draw)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steps = [
        Muon([ours], lr=0.01),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(shape, generator=draw)
        for optimizer in steps:
            optimizer.step()
    error = ((ours - theirs).norm() / (theirs - start).norm()).item()
    assert error < BFLOAT16, f"the steps differ by {error:.1%}: momentum, decay or size is not torch's"


def test_only_matrices_are_stepped():
    with pytest.raises(AssertionError, match="Muon needs matrices"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)
