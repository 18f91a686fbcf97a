"""How well a ranking finds the samples that show a concept; precision is told beside its base rate."""

from collections.abc import Sequence

import numpy as np


def precision_at(relevant: Sequence[bool], k: int) -> float:
    """Share of the first k that show the concept; of all when there are fewer."""
    head = relevant[:k]
    return sum(head) / max(1, len(head))


def average_precision(relevant: Sequence[bool]) -> float:
    """AP = mean over relevant ranks r of precision@r; 0 when nothing is relevant.

    The expected value of a random order is about the base rate.
    """
    hits = np.asarray(relevant, dtype=np.float64)
    ranks = np.flatnonzero(hits)
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).mean()) if len(ranks) else 0.0


def base_rate(relevant: Sequence[bool]) -> float:
    """Share of all samples that show the concept: what any ranking gets that knows nothing."""
    return sum(relevant) / max(1, len(relevant))


def recall_at_carriers(relevant: Sequence[bool]) -> float:
    """Share of the carriers found when as many samples are taken as there are carriers."""
    return precision_at(relevant, sum(relevant))


def recall_at(relevant: Sequence[bool], carriers: int, k: int) -> float:
    """Those among the first k that show the concept, of as many as could stand there: min(k, carriers)."""
    return sum(relevant[:k]) / max(1, min(k, carriers))
