"""The pictures of a query's samples, at which hardly a test looks, in 5 steps instead of 51."""

from dataclasses import replace

import pytest

from concept_trak.attribution import query, query_paths
from concept_trak.attribution.query import UNGUIDED

FEW = replace(UNGUIDED, points=6, every=1)


def draw_in_few_steps(patch: pytest.MonkeyPatch) -> None:
    """No feature depends on it."""
    patch.setattr(query_paths, "UNGUIDED", FEW)


def generate_in_few_steps(patch: pytest.MonkeyPatch) -> None:
    """Also the images from which a whole-image method has a query's features: they are others in this process alone."""
    patch.setattr(query, "UNGUIDED", FEW)
