"""What a ranking finds among the carriers whose caption names the concept, and among those whose caption does not.

A search for a word finds the first, and no search of captions finds the second. For either part of the carriers, the
ranking is graded without the other part, whose samples are neither hits nor mistakes:

    gain = AP - base rate, of the ranking of all samples except the carriers of the other part.

n samples, m rankings.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from concept_trak.attribution.concept import Concept
from concept_trak.data.benchmarks.synthetic import SAID
from concept_trak.evaluation.retrieval import ranks_of_columns


class Carriers(NamedTuple):
    """The samples whose image shows a concept: those whose caption names it, and the others. No sample is in both."""

    named: Bool[np.ndarray, " n"]
    unnamed: Bool[np.ndarray, " n"]


class CaptionGains(NamedTuple):
    """AP - base rate of m rankings among the named and among the unnamed carriers; NaN where there are none."""

    named: Float[np.ndarray, " m"]
    unnamed: Float[np.ndarray, " m"]


def carriers(concept: Concept, labels: Sequence[Mapping[str, str]]) -> Carriers:
    """The carriers of a cell's concept. Without labels of what captions say, every caption names its image's factors.

    Args:
        concept: a concept whose truth has one factor, as a label of images or of captions.
        labels: of each sample.
    """
    (name, value), *_ = concept.truth.items()
    factor = name.removeprefix(SAID)
    shown = np.array([own.get(factor) == value for own in labels], dtype=bool)
    naming = np.array([own.get(f"{SAID}{factor}", value) == value for own in labels], dtype=bool)
    return Carriers(named=shown & naming, unnamed=shown & ~naming)


def caption_gains(scores: Float[np.ndarray, "n m"], groups: Carriers, ids: Sequence[str]) -> CaptionGains:
    """The gains of every column of scores; ties are ordered by sample id."""
    if not groups.unnamed.any() or not groups.named.any():
        # One part is all carriers, so that no ranking is graded without the other.
        unknown = np.full(scores.shape[1], np.nan)
        return CaptionGains(unknown, unknown)
    order = ranks_of_columns(scores, ids)
    return CaptionGains(*(_gain(order, part, groups[1 - i]) for i, part in enumerate(groups)))


def _gain(order: np.ndarray, part: np.ndarray, other: np.ndarray) -> Float[np.ndarray, " m"]:
    """AP - base rate of the orders without the other part."""
    hits, ranked = part[order], ~other[order]
    precision = hits.cumsum(0) / np.maximum(1, ranked.cumsum(0))
    return (precision * hits).sum(0) / part.sum() - part.sum() / (~other).sum()
