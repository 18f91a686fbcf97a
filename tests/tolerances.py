"""Every tolerance of the tests, named once. They are never loosened without a measurement beside them."""

import torch

EXACT64 = 1e-9  # relative, two float64 implementations of one formula; whole rows of the method table: measured 3e-12
SWEPT64 = 1e-9  # relative, an eigendecomposition against a dense solve, also of rank-deficient features; measured 2e-12
BATCH32 = 2e-5  # relative, float32 features of one sample in two batches (matrix products block differently)
STORED16 = 1e-3  # relative, features stored as float16 with a scale against float64
STORED32 = 2e-7  # relative, float64 features stored as float32: each number by at most 2^-24
TABLE32 = 1e-6  # relative, formulas in float64 against diffusers' own over its float32 noise table
LEVELS = 2  # of 255: rounding to 8 bits between two bicubic passes, in either order: twice 0.5 (1 + 1.3) at most
SCORE16 = 2e-4  # relative to the root mean square of the scores, float16 features in other batches; measured 5e-5
DENSE32 = 1e-5  # relative to the largest entry, float32 sums and scores of few samples against float64; measured 1e-6
# Guided inversion of an untrained network amplifies rounding: measured 1.3e-4 between two batches, 0.8e-4 between
# float32 and float64, and 4e-13 between two batches in float64.
GUIDED32 = 5e-4  # relative, float32 features of one sample in two batches at the end of a guided inversion
NOTHING = 1e-6  # of the whole gradient: below it a parameter's own is rounding (a bias that a norm takes out again)


def rounding(dtype: torch.dtype, calls: int) -> float:
    """Relative error of a gradient from a network in `dtype` with so many calls of layers, against float64.

    Rounding to nearest moves a number by at most u = eps / 2 of it. Each call rounds its output, the gradient that goes
    back through it, and its weights, and roundings of different calls are independent: 3 n errors of at most u add up
    to u sqrt(3 n). Measured on the small UNets, n = 201: 4 u for one state, 8 u for caption_trak, 10 u after a guided
    inversion, where the bound is 25 u.
    """
    return torch.finfo(dtype).eps / 2 * (3 * calls) ** 0.5


def least_cosine_of(error: float) -> float:
    """Of two rows that differ by `error` of their length: cos >= sqrt(1 - error^2)."""
    assert error < 1, "rounding this large explains any direction: ask for something better conditioned"
    return (1 - error**2) ** 0.5
