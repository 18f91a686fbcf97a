"""Geometry of the pages' line charts (`chart.html`), in percent of the plot from its top left corner.

A chart in percent fits any screen, and its text keeps its size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HUES = 9
"""Number of colours, all distinguishable. Hue 0 is the accent of the page; -1 is grey."""
Point = tuple[float, float]
"""x and y in percent."""


@dataclass(frozen=True)
class Dot:
    """A marked point of a curve and the words of its tooltip."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    `label`: y of the name beside its end. `lead`: drawn thick. `hollow`: its dots are open circles.
    """

    name: str
    hue: int
    points: tuple[Point, ...]
    dots: tuple[Dot, ...]
    label: float
    lead: bool = False
    dashed: bool = False
    hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """The curves, the first on top, and the ticks of both axes: (value, position in percent)."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, float], ...]
    y_ticks: tuple[tuple[float, float], ...]
    height: int
    """Pixels."""


def spread_apart(positions: Sequence[float], gap: float, low: float = 0.0, high: float = 100.0) -> tuple[float, ...]:
    """Move positions as little as needed to be at least `gap` apart within [low, high]; their order stays.

    Args:
        positions: In percent; equal ones keep the order given.
        gap: Percent; at most (high - low) / (number of positions - 1).
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved, floor = dict.fromkeys(order, 0.0), low
    for i in order:
        moved[i] = max(floor, positions[i])
        floor = moved[i] + gap
    ceiling = high
    for i in reversed(order):
        moved[i] = min(ceiling, moved[i])
        ceiling = moved[i] - gap
    return tuple(round(moved[i], 2) for i in range(len(positions)))
