"""How far two ways of scoring agree: in the order of their scores, and row by row in their features."""

import numpy as np

from tests.benchmarks.seat import Answer


def spearman(answer: Answer, truth: np.ndarray) -> float | None:
    """Mean over the queries of Spearman's rank correlation with the true scores [queries, n], self-scores apart.

    None for an answer without features or scores.
    """
    scores = scored(answer, len(truth))
    if scores is None:
        return None
    assert scores.shape == truth.shape, f"scores {scores.shape} against {truth.shape}: not the same samples"
    assert (np.ptp(truth, axis=1) > 0).all(), "all true scores of a query are equal: there is no order to agree with"
    return float(np.mean([correlation(np.delete(a, q), np.delete(b, q)) for q, (a, b) in _pairs(scores, truth)]))


def scored(answer: Answer, queries: int) -> np.ndarray | None:
    """Scores [queries, n]: its own, or inner products of the first features with all."""
    if answer.features is None:
        return answer.scores
    return answer.features[:queries] @ answer.features.T


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Over the samples, between features of the same coordinates."""
    return float((np.vecdot(a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def _pairs(scores: np.ndarray, truth: np.ndarray):
    return enumerate(zip(scores, truth, strict=True))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ties share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
