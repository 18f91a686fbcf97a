"""A convolution's gradient, kept as its factors, against autograd through one sample at a time."""

import pytest
import torch
from torch import nn

from concept_trak.attribution.gradients.conv2d import Conv2dGradient
from concept_trak.attribution.gradients.layer_rules import per_sample_gradients, record_call
from tests.tolerances import EXACT64

# (inputs, outputs, side of the image, rows of a sample, and the layer's own)
CASES = {
    "by factors": (32, 32, 3, 1, {"padding": 1}),
    "by patches": (2, 5, 7, 1, {"padding": 1}),
    "by groups": (2, 6, 12, 1, {"padding": 1}),
    "few outputs": (3, 2, 12, 1, {"padding": 1}),
    "few outputs, no padding": (3, 2, 6, 2, {}),
    "few outputs, dilated": (3, 2, 9, 1, {"padding": (0, 3), "dilation": (1, 2)}),
    "few outputs, strided": (3, 2, 12, 1, {"padding": 1, "stride": 2}),
    "few outputs, wide padding": (3, 2, 12, 1, {"padding": 3}),
    "several rows": (6, 8, 4, 2, {"padding": 1}),
    "strided": (6, 8, 7, 1, {"padding": 1, "stride": 2}),
    "apart, dilated": (6, 8, 6, 1, {"padding": (2, 1), "dilation": (2, 1)}),
    "oblong": (6, 8, 4, 1, {"padding": (0, 1)}),
    "grouped": (6, 8, 4, 1, {"padding": 1, "groups": 2}),
}


def made(case):
    """The piece, and the exact gradient [b, o, i, k, l]."""
    inputs, outputs, side, rows, own = CASES[case]
    draw = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, (2, 3) if case == "oblong" else 3, **own).double()
    x = torch.randn(4 * rows, inputs, side, side + 1, generator=draw, dtype=torch.float64)
    y = layer(x)
    g = torch.randn(y.shape, generator=draw, dtype=torch.float64)
    found = per_sample_gradients(layer, record_call(layer, (x,), {}, y), g, 4, ["weight", "bias"])
    for i in range(4):
        here = slice(rows * i, rows * (i + 1))
        bias = torch.autograd.grad(layer(x[here]), layer.bias, g[here])[0]
        torch.testing.assert_close(found["bias"].dense()[i], bias, rtol=EXACT64, atol=1e-12)
    each = [
        torch.autograd.grad(layer(x[i : i + rows]), layer.weight, g[i : i + rows])[0] for i in range(0, len(x), rows)
    ]
    return found["weight"], torch.stack(each)


def test_the_cases_go_every_way():
    ways = {case: made(case)[0] for case in CASES}
    assert all(isinstance(piece, Conv2dGradient) for piece in ways.values())
    assert [case for case, piece in ways.items() if piece.norm_is_cheaper_in_factors] == ["by factors"]
    by_groups = [case for case, piece in ways.items() if not piece.by_patches]
    by_groups = [case for case in by_groups if not ways[case].by_output_patches]
    assert by_groups == ["by groups", "grouped"]
    exchanged = [case for case, piece in ways.items() if piece.by_output_patches]
    assert exchanged == ["few outputs", "few outputs, no padding", "few outputs, dilated"]


@pytest.mark.parametrize("case", CASES)
def test_it_answers_as_its_matrix_does(case, monkeypatch):
    monkeypatch.setattr(
        "concept_trak.attribution.gradients.conv2d.PATCH_NUMBERS", 1500
    )  # so that patches come in several parts
    piece, exact = made(case)
    torch.testing.assert_close(piece.dense(), exact, rtol=EXACT64, atol=1e-12)
    for dearer in (-1e9, 1e9):  # by the factors wherever they can tell, and never
        monkeypatch.setattr("concept_trak.attribution.gradients.conv2d.ADDITION", dearer)
        assert piece.norm_is_cheaper_in_factors == (
            dearer < 0 and case not in ("grouped", "several rows", "few outputs, no padding")
        )
        torch.testing.assert_close(piece.squared_norm(), exact.square().flatten(1).sum(1), rtol=EXACT64, atol=0)
    at = torch.tensor([exact[0].numel() - 1, 0, 13])
    for dearer in (1e-9, 1e9):
        monkeypatch.setattr("concept_trak.attribution.gradients.conv2d.GATHERED", dearer)
        torch.testing.assert_close(piece.entries(at), exact.flatten(1)[:, at], rtol=EXACT64, atol=1e-12)
    left, right = torch.randn(exact.shape[1], 3).double(), torch.randn(exact[0, 0].numel(), 2).double()
    expected = left.T @ exact.flatten(2) @ right
    torch.testing.assert_close(piece.two_sided(left, right), expected, rtol=EXACT64, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("own", [True, False])
def test_it_adds_up_in_any_order_of_memory(case, own):
    piece, exact = made(case)
    factor = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    room = torch.full((exact.numel(),), torch.nan, dtype=torch.float64)
    total = piece.as_sum(room) if own else room.view(exact.shape)
    piece.add_to(total, factor, overwrite=True)
    piece.add_to(total, torch.ones_like(factor))
    torch.testing.assert_close(total, (1 + factor)[:, None, None, None, None] * exact, rtol=EXACT64, atol=1e-12)
