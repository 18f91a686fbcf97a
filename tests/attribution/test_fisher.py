"""Sums in any grouping, and scores against a dense float64 solve, primal and dual."""

import pytest
import torch

from concept_trak.attribution.fisher import (
    PANEL,
    ROWS,
    Gram,
    factorize_damped,
    gram,
    solve,
    solve_damped,
    solve_dual,
    stored_gram,
    sum_grams,
    sweep,
)
from concept_trak.attribution.ranking import score_rms, scores
from tests.tolerances import DENSE32, EXACT64, SWEPT64


def rows(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [20, 200])
@pytest.mark.parametrize("damping", [1e-3, 1.0, 100.0])
def test_scores_equal_a_dense_float64_solve(n, damping):
    phi, queries = rows(n, 40), rows(3, 40, seed=1)
    k = gram(phi)
    lam = k.damped(damping)
    dense = phi @ torch.linalg.inv(phi.T @ phi + lam * torch.eye(40).double()) @ queries.T
    for name, solved in (("primal", solve(k.matrix, lam, queries)), ("dual", solve_dual(phi, lam, queries))):
        ours = scores(phi, torch.ones(n).double(), solved.z)
        error = (ours - dense).norm() / dense.norm()
        assert error < EXACT64, f"{name} form is off by {error:.1e}"
        assert (solved.residual < EXACT64).all()


@pytest.mark.parametrize("n", [20, 200])
def test_one_factor_solves_query_after_query(n):
    phi, k = rows(n, 40), gram(rows(n, 40))
    factor, lam = factorize_damped(k, 3.0, lambda: phi)
    for seed in (1, 2):
        queries = rows(3, 40, seed=seed)
        solution, same = solve_damped(k, 3.0, queries, lambda: phi)
        assert (lam, factor.solve(queries).z.tolist()) == (same, solution.z.tolist()), "another order of sums"
        torch.testing.assert_close(solution.z @ k.matrix + lam * solution.z, queries, rtol=0, atol=EXACT64)


def test_grams_add_in_any_grouping():
    phi = rows(30, 8)
    whole, parts = gram(phi), sum_grams([gram(phi[:7]), gram(phi[7:19]), gram(phi[19:])])
    torch.testing.assert_close(whole.matrix, parts.matrix, rtol=EXACT64, atol=1e-12)
    assert whole.count == parts.count == 30
    assert abs(whole.trace - phi.square().sum().item()) < 1e-9


def summed(unit, scale, size):
    return stored_gram(zip(unit.split(size), scale.split(size), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_a_sum_of_stored_rows_is_one_product_however_they_are_cut(dtype):
    n, k = 2 * ROWS + 77, PANEL + 44
    unit, scale = (20 * rows(n, k)).to(dtype), rows(n, 1)[:, 0].exp().float()
    dense = gram(unit.double() * scale[:, None].double())
    whole = summed(unit, scale, n)
    assert whole.count == n
    assert (whole.matrix - dense.matrix).abs().max() < DENSE32 * dense.matrix.abs().max(), "rows or panels are missing"
    assert torch.equal(whole.matrix, whole.matrix.T), "the upper half is not the lower one"
    for size in (1000, ROWS, 300):
        assert torch.equal(summed(unit, scale, size).matrix, whole.matrix), "the sum depends on where blocks are cut"


def test_damping_is_relative_to_the_mean_eigenvalue():
    """Features times 10 rescale K by 100 and lambda with it: the order of scores cannot change."""
    phi, query = rows(50, 10), rows(1, 10, seed=1)
    assert abs(gram(phi).damped(2.0) - 2 * torch.linalg.eigvalsh(phi.T @ phi).mean().item()) < 1e-9
    small, large = (
        scores(s * phi, torch.ones(50).double(), solve(gram(s * phi).matrix, gram(s * phi).damped(2.0), query).z)
        for s in (1.0, 10.0)
    )
    torch.testing.assert_close(large, small / 10, rtol=1e-9, atol=1e-14)


def test_infinite_damping_is_the_plain_inner_product():
    phi, query = rows(50, 10), rows(1, 10, seed=1)
    lam = gram(phi).damped(1e9)
    torch.testing.assert_close(lam * solve(gram(phi).matrix, lam, query).z, query, rtol=1e-7, atol=1e-9)


def test_no_damping_on_a_singular_gram_is_refused():
    phi = rows(3, 10)
    with pytest.raises(ValueError, match="raise `damping`"):
        solve(gram(phi).matrix, 0.0, rows(1, 10))
    with pytest.raises(ValueError, match="raise `damping`"):
        solve_dual(phi, 0.0, rows(1, 10))


def test_the_spread_of_scores_is_known_before_scoring():
    phi, z = rows(500, 10), rows(1, 10, seed=1)
    exact = scores(phi, torch.ones(500).double(), z).square().mean().sqrt().item()
    assert abs(score_rms(z[0], gram(phi).matrix, 500) / exact - 1) < EXACT64


@pytest.mark.parametrize(("n", "k", "rank"), [(20, 40, 40), (200, 40, 40), (60, 40, 7), (30, 50, 1)])
def test_a_sweep_is_a_dense_solve_at_every_damping(n, k, rank):
    phi = rows(n, rank) @ rows(rank, k, seed=2) if rank < min(n, k) else rows(n, k)
    queries, dampings = rows(3, k, seed=1), [1e-2, 1.0, 100.0, 1e4]
    swept = list(sweep(phi, queries, dampings))
    assert len(swept) == len(dampings)
    for damping, ours in zip(dampings, swept, strict=True):
        lam = damping * phi.square().sum() / k
        dense = phi @ torch.linalg.solve(phi.T @ phi + lam * torch.eye(k).double(), queries.T)
        error = ((ours - dense).norm() / dense.norm()).item()
        assert error < SWEPT64, f"n={n}, k={k}, rank {rank}, damping {damping:g}: off by {error:.1e}"


def test_a_sweep_agrees_with_the_audits_own_solve():
    phi, queries = rows(50, 10), rows(2, 10, seed=1)
    k = gram(phi)
    (swept,) = sweep(phi, queries, [3.0])
    solved = scores(phi, torch.ones(50).double(), solve(k.matrix, k.damped(3.0), queries).z)
    torch.testing.assert_close(swept, solved, rtol=EXACT64, atol=1e-12)


def test_a_sweep_tends_to_the_plain_inner_product():
    phi, queries = rows(50, 10), rows(2, 10, seed=1)
    (swept,) = sweep(phi, queries, [1e9])
    torch.testing.assert_close(swept * gram(phi).damped(1e9), phi @ queries.T, rtol=1e-7, atol=1e-8)


def test_features_that_are_all_zero_score_zero():
    (swept,) = sweep(torch.zeros(5, 10), rows(2, 10, seed=1), [3.0])
    assert (swept == 0).all(), "0 / 0: such a ranking would be of undefined numbers"


def test_features_that_are_all_zero_solve_to_zero():
    """The pseudo-inverse of K = 0 is 0; a Cholesky factor does not exist at lambda = 0."""
    phi, queries = torch.zeros(3, 5), torch.randn(2, 5)
    solution, lam = solve_damped(Gram(phi.double().T @ phi.double(), len(phi)), 100.0, queries, lambda: phi)
    assert lam == 0
    assert not solution.z.any()
    assert not solution.residual.any()
