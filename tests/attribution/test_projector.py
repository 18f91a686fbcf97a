"""Inner products in expectation with the right variance, and the same matrix everywhere."""

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from concept_trak.attribution import projector
from concept_trak.attribution.gradients.accumulate import feature_sums
from concept_trak.attribution.gradients.factors import DenseGradient, FactoredGradient
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.numerics import key, mix
from concept_trak.attribution.projector import PROJECTORS, Projector, Tables, kronecker_factors, two_sided

SHAPES = {"down.weight": (6, 4, 3, 3), "mid.bias": (7,), "up.weight": (11, 13)}
D = 6 * 4 * 9 + 7 + 11 * 13


def gradients(b: int = 2, seed: int = 0, dtype=torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(b, *s, generator=generator, dtype=dtype) for n, s in SHAPES.items()}


def flat(g):
    return torch.cat([x.flatten(1) for x in g.values()], 1)


@pytest.mark.parametrize("kind", ["rademacher", "sketch"])
def test_inner_products_are_preserved_with_the_stated_variance(kind, monkeypatch):
    monkeypatch.setattr(projector, "BLOCK_ROWS", 32)  # so that several blocks share their signs, as in large parameters
    k, g = 32, gradients()
    (a, b), seeds = flat(g), range(600)
    estimates = torch.stack([(lambda p: p[0] @ p[1])(Projector(kind, k, seed)(g)) for seed in seeds])
    variance = (a @ a * (b @ b) + (a @ b) ** 2 - 2 * (a**2 * b**2).sum()) / k
    z = (estimates.mean() - a @ b) / (variance / len(seeds)).sqrt()
    assert abs(z) < 4, f"<Pg, Ph> is biased by {z:.1f} standard errors: P is scaled wrongly or its signs are not fair"
    ratio = estimates.var() / variance
    assert 0.8 < ratio < 1.25, (
        f"variance is {ratio:.2f} of theory: buckets or signs of different coordinates are correlated"
    )


def test_two_sides_preserve_inner_products_with_the_stated_variance():
    draw, seeds = torch.Generator().manual_seed(3), range(300)
    g, h = (torch.randn(1, 20, 18, generator=draw, dtype=torch.float64) for _ in range(2))
    g[0] += 3 * torch.outer(g[0, :, 0], g[0, 0])  # partly of rank one, as the gradient of a few places
    h += g
    both, kind = torch.cat([g, h]), (g.dtype, g.device)
    made = [two_sided(both, *kronecker_factors("w", both.shape[1:], seed, *kind)) for seed in seeds]
    estimates = torch.stack([(a * b).sum() for a, b in made])
    variance = _two_sided_variance(g[0], h[0])
    z = (estimates.mean() - (g * h).sum()) / (variance / len(seeds)).sqrt()
    assert abs(z) < 4, f"two sides are biased by {z:.1f} standard errors: one is not scaled by its own width"
    ratio = estimates.var() / variance
    assert 0.75 < ratio < 1.33, f"variance is {ratio:.2f} of theory: the two sides share signs, or their rows do"


def _two_sided_variance(g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    def apart(c: torch.Tensor) -> torch.Tensor:
        return ((c + c.T) ** 2).sum() - ((c + c.T).diagonal() ** 2).sum()

    k = torch.einsum("ac,bd->abcd", h, g)
    k = k + k.transpose(2, 3)
    k = (k + k.transpose(0, 1)) ** 2
    no_a, no_c = (1 - torch.eye(n, dtype=g.dtype) for n in g.shape)
    both = torch.einsum("abcd,ab,cd->", k, no_a, no_c) / 4
    return apart(g @ h.T) / 2 / 16 + apart(h.T @ g) / 2 / 16 + both / 16**2


@pytest.mark.parametrize("kind", ["sketch", "kronecker"])
def test_columns_of_a_larger_k_add_up_to_a_smaller_one(kind):
    short, long = Projector(kind, 24)(gradients()), Projector(kind, 96)(gradients())
    torch.testing.assert_close(short, long.unflatten(1, (4, 24)).sum(1))


def test_mask_is_unbiased_and_a_prefix():
    g = gradients()
    a, b = flat(g)
    estimates = torch.stack([(lambda p: p[0] @ p[1])(Projector("mask", 128, seed)(g)) for seed in range(400)])
    z = (estimates.mean() - a @ b) / (estimates.std() / 20)
    assert abs(z) < 4, f"the mask is biased by {z:.1f} standard errors: sqrt(d / k) is missing"
    short, long = Projector("mask", 16)(g), Projector("mask", 128)(g)
    torch.testing.assert_close(short / (D / 16) ** 0.5, long[:, :16] / (D / 128) ** 0.5)


def test_rademacher_of_a_smaller_k_is_a_prefix():
    short, long = Projector("rademacher", 33)(gradients()), Projector("rademacher", 100)(gradients())
    torch.testing.assert_close(short * 33**0.5, long[:, :33] * 100**0.5)


def test_rademacher_is_the_written_out_matrix():
    k = 40
    eye = {n: torch.zeros(D, *s, dtype=torch.float64) for n, s in SHAPES.items()}
    row = 0
    for n, s in SHAPES.items():
        size = torch.Size(s).numel()
        eye[n].view(D, -1)[row : row + size] = torch.eye(size)
        row += size
    matrix = Projector("rademacher", k)(eye)
    assert set((matrix * k**0.5).round(decimals=6).unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(Projector("rademacher", k)(gradients()), flat(gradients()) @ matrix)


@pytest.mark.parametrize("kind", PROJECTORS)
def test_linear_and_independent_of_batch(kind):
    p, g, h = Projector(kind, 16), gradients(3, 1), gradients(3, 2)
    both = p({n: 2 * g[n] + h[n] for n in g})
    torch.testing.assert_close(both, 2 * p(g) + p(h))
    torch.testing.assert_close(p({n: x[1:2] for n, x in g.items()}), p(g)[1:2])


PRINT_DIGEST = """
import hashlib, sys
sys.path.insert(0, ".")
from tests.attribution.test_projector import PROJECTORS, digest
print(digest())
"""


def digest() -> str:
    """Bytes of the exact (+-1 and 0) part of each projection of integers, so that no rounding is in the way."""
    whole = {n: torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape) % 7 - 3 for n, x in gradients().items()}
    return hashlib.sha256(
        b"".join(Projector(k, 20, 5)(whole).numpy().tobytes() for k in ("sketch", "mask", "kronecker"))
    ).hexdigest()


def test_another_process_builds_the_same_matrix():
    other = subprocess.run([sys.executable, "-c", PRINT_DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(), "P depends on the process: hash() or global random state is in it"


def splitmix64(x: int) -> int:
    mask, z = 2**64 - 1, x % 2**64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return (z ^ z >> 31) & 2**63 - 1


@given(st.integers(-(2**62), 2**62))
def test_mix_is_splitmix64(x):
    assert mix(torch.tensor([x])).item() == splitmix64(x)


@pytest.mark.parametrize(("rows", "dim"), [(range(3, 8), 70), (range(40, 1100), 70)], ids=["kept", "drawn anew"])
def test_a_sign_is_a_bit_of_the_word_of_its_row_and_column(rows, dim):
    """32 columns a word, in bits 8 to 39; small matrices are kept and large ones are not, and nobody can tell."""
    across, down = (key(5, "w", side) % 2**40 for side in ("columns", "rows"))
    tables = Tables()
    for _ in range(2):
        found = tables.signs(5, "w", rows, dim, torch.float32, torch.device("cpu"))
        assert found.shape == (len(rows), dim)
        for i, j in ((0, 0), (1, 31), (2, 32), (len(rows) - 1, 69)):
            word = splitmix64(splitmix64(rows[i] + down) ^ splitmix64(j // 32 + across))
            assert found[i, j] == (1 if word >> 8 + j % 32 & 1 else -1), f"row {i}, column {j}"


def test_refusals():
    with pytest.raises(ValueError, match="wider than the 10 attributable parameters"):
        Projector("sketch", 11).width(10)
    assert Projector("identity", 11).width(10) == 10
    with pytest.raises(ValueError, match="expected one of: identity, mask"):
        Projector("jl")


@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_running_total_is_the_projected_sum(kind, apart):
    """Piece by piece, with factors, as products or multiplied out, against P of the sum."""
    draw = torch.Generator().manual_seed(1)
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    plain = {name: torch.zeros_like(g) for name, g in gradients(2, 5).items()}
    with feature_sums(Projector(kind, 40), parameters, 2, 1, Workspace()) as (total,):
        for _ in range(3):
            factor = torch.randn(2, generator=draw, dtype=torch.float64)
            for name, shape in SHAPES.items():
                inputs = parameters[name].numel() // shape[0]
                g, x = (torch.randn(2, 5, n, generator=draw, dtype=torch.float64) for n in (shape[0], inputs))
                factored = FactoredGradient(g, x, shape)
                total.add({name: factored if apart else DenseGradient(factored.dense())}, factor)
                plain[name] += factor.reshape(-1, *[1] * len(shape)) * factored.dense()
            torch.testing.assert_close(total.phi(), Projector(kind, 40)(plain), rtol=1e-9, atol=1e-12)


def test_sums_that_run_together_share_no_memory_and_later_ones_start_at_zero():
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    g, ones, workspace = gradients(), torch.ones(2, dtype=torch.float64), Workspace()
    dense = {name: DenseGradient(value) for name, value in g.items()}
    with feature_sums(Projector("sketch", 40), parameters, 2, 2, workspace) as (first, second):
        first.add(dense, ones)
        second.add(dense, ones)
        first.add(dense, ones)
        expected = Projector("sketch", 40)(g)
        torch.testing.assert_close(first.phi(), 2 * expected)
        torch.testing.assert_close(second.phi(), expected)
    with feature_sums(Projector("sketch", 40), parameters, 1, 1, workspace) as (fewer,):
        assert not fewer.phi().any(), "a sum starts from what an earlier one left in its memory"
