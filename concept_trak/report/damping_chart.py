"""How a damping was chosen, drawn: within - between of every method against the damping, its choice marked."""

import math
from collections.abc import Mapping

from concept_trak.attribution.damping import DampingChoice
from concept_trak.report.chart import HUES, Chart, Curve, Dot, spread_apart

HEIGHT = 220
"""Pixels."""
LABEL_HEIGHT = 17
"""Pixels that the name of a curve takes."""
LOWEST, HIGHEST, STEP = -0.25, 1.0, 0.25
"""The axis of within - between; what lies beyond is drawn at its end."""


def agreement_chart(choices: Mapping[str, DampingChoice]) -> Chart | None:
    """The curves of the methods whose damping was chosen, on a logarithmic axis; None where there are none."""
    chosen = {method: choice for method, choice in choices.items() if choice.curve}
    if not chosen:
        return None
    dampings = sorted({point.damping for choice in chosen.values() for point in choice.curve})
    first, last = math.log10(dampings[0]), math.log10(dampings[-1])
    x = {d: round(5 + 92 * (math.log10(d) - first) / (last - first), 2) if last > first else 50.0 for d in dampings}
    ends = [_height(choice.curve[-1].separation) for choice in chosen.values()]
    height = max(HEIGHT, LABEL_HEIGHT * len(chosen) + 40)
    gap = 100 * LABEL_HEIGHT / height
    curves = tuple(
        Curve(
            name=method,
            hue=hue if hue < HUES else -1,
            points=tuple((x[point.damping], _height(point.separation)) for point in choice.curve),
            dots=tuple(
                Dot(x[p.damping], _height(p.separation), f"{method}: {p.within:.2f} within, {p.between:.2f} between")
                for p in choice.curve
                if p.damping == choice.damping
            ),
            label=label,
            lead=hue == 0,
        )
        for hue, ((method, choice), label) in enumerate(
            zip(chosen.items(), spread_apart(ends, gap, 1 + gap / 2, 99 - gap / 2), strict=True)
        )
    )
    ticks = [LOWEST + STEP * i for i in range(round((HIGHEST - LOWEST) / STEP) + 1)]
    return Chart(curves, tuple(x.items()), tuple((tick, _height(tick)) for tick in ticks), height)


def _height(separation: float) -> float:
    """Percent from the top."""
    within_axis = min(max(separation, LOWEST), HIGHEST)
    return round(3 + 94 * (HIGHEST - within_axis) / (HIGHEST - LOWEST), 2)
