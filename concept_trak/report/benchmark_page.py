"""The page of a benchmark as one self-contained HTML file: which method finds the concept, and how sure that is.

`league.html` holds structure and words. Here is what it needs computed: the verdict, and the geometry of the drawings
in percent of their box, so that they fit any screen and their words keep their size.

A benchmark's results as people read them: Parquet, Markdown, a page.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from concept_trak.evaluation.benchmark import GRADED, STANDINGS, ranking_file, standing_row
from concept_trak.evaluation.leaderboard import Arm, Cell, Standing, Table, best_baseline
from concept_trak.report.render import environment
from concept_trak.store.manifest import Audit, read_table
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

COLOURS = 9  # methods told apart by colour: as many as a reader can; the others are grey
LINE = 17  # pixels that a label of a curve takes
PLAIN_GAP = 1.0  # decades between the strongest finite damping and the plain inner product, which has none


@dataclass(frozen=True)
class Curve:
    """One arm's merit against damping. Points, its end and its label in percent of the drawing, from top left.

    `hue` is a number below `COLOURS`, or -1 for grey; `dashed` where the method has another arm, its own query's.
    """

    arm: Arm
    hue: int
    dashed: bool
    points: tuple[tuple[float, float], ...]
    chosen: tuple[float, float]
    label: float


@dataclass(frozen=True)
class Drawing:
    """The figure of one data set: its curves, best first, and the places of its axes' words."""

    curves: tuple[Curve, ...]
    dampings: tuple[tuple[float, float], ...]
    merits: tuple[tuple[float, float], ...]
    height: int
    """In pixels: room for every label."""


def drawing(one: Table, shown: Sequence[Standing]) -> Drawing:
    """Merit against damping: the logarithm of the damping to the right, the plain inner product last."""
    curves = {line.arm: one.curves[line.arm] for line in shown}
    x = _across({d for curve in curves.values() for d in curve})
    low, high, step = _range([m for curve in curves.values() for m in curve.values()])

    def y(merit: float) -> float:
        return round(3 + 94 * (high - merit) / (high - low), 2)

    hues = _hues(one.reference.method, shown)
    height = max(380, LINE * len(shown) + 40)
    places = _apart([y(curve[max(curve)]) for curve in curves.values()], 100 * LINE / height)
    drawn = tuple(
        Curve(
            line.arm,
            hues.get(line.arm.method, -1),
            line.arm.asked == "concept",
            tuple((x[d], y(m)) for d, m in sorted(curves[line.arm].items())),
            (x[line.damping], y(curves[line.arm][line.damping])),
            place,
        )
        for line, place in zip(shown, places, strict=True)
    )
    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    return Drawing(drawn, tuple(sorted(x.items())), tuple((round(t, 6), y(t)) for t in ticks), height)


def verdict(best: Standing) -> str:
    """ahead or behind: the interval lies on one side of 0 and so does every model; mixed: only the interval; open."""
    low, high = best.behind
    if low <= 0 <= high:
        return "open"
    agree = all((value > 0) == (low > 0) and value != 0 for value in best.behind_per_model)
    return ("ahead" if low > 0 else "behind") if agree else "mixed"


@dataclass(frozen=True)
class Result:
    """One data set as the page shows it. `verdict` is ahead, behind, mixed or open; `above` has the better merits."""

    table: Table
    ours: Standing
    best: Standing
    verdict: str
    above: tuple[Standing, ...]
    shown: tuple[Standing, ...]
    flipped: tuple[Standing, ...]
    drawing: Drawing


def render_league(tables: Sequence[Table]) -> str:
    """The page of a benchmark's `tables`, one per data set, as a complete HTML document. Equal tables, equal text."""
    return _TEMPLATE.render(results=[result(one) for one in tables], colours=range(COLOURS))


def result(one: Table) -> Result:
    """What the page says about one data set."""
    ours = next(line for line in one.lines if line.arm == one.reference)
    best = best_baseline(one.lines)
    shown = tuple(line for line in one.lines if not line.arm.flipped)
    flipped = tuple(line for line in one.lines if line.arm.flipped)
    above = tuple(line for line in shown if line.merit > ours.merit)
    return Result(one, ours, best, verdict(best), above, shown, flipped, drawing(one, shown))


def _across(dampings: set[float]) -> dict[float, float]:
    """Where each damping stands, in percent."""
    finite = sorted(math.log10(d) for d in dampings if math.isfinite(d))
    last = finite[-1] + PLAIN_GAP if finite else 0.0
    at = {d: math.log10(d) if math.isfinite(d) else last for d in dampings}
    first, width = min(at.values()), max(at.values()) - min(at.values())
    return {d: round(5 + 92 * (value - first) / width, 2) if width else 50.0 for d, value in at.items()}


def _range(merits: Sequence[float]) -> tuple[float, float, float]:
    """The axis of merits: its ends, which hold 0, and the step of its ticks, at most ten."""
    lowest, highest = min(0.0, *merits), max(0.0, *merits)
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if highest - lowest <= 8 * s)
    return step * math.floor(lowest / step - 1e-9), step * math.ceil(highest / step + 1e-9), step


def _hues(reference: str, shown: Sequence[Standing]) -> dict[str, int]:
    """The reference has the first colour, then the methods by merit; what needs no gradient is grey."""
    methods = dict.fromkeys([reference, *(line.arm.method for line in shown if line.arm.asked != "none")])
    return {method: hue for hue, method in enumerate(itertools.islice(methods, COLOURS))}


def _apart(places: Sequence[float], gap: float) -> tuple[float, ...]:
    """The places moved as little as needed to lie `gap` apart and within 1 ... 99; their order stays."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved, floor = dict.fromkeys(order, 0.0), 1 + gap / 2
    for i in order:
        moved[i] = floor = max(floor, places[i])
        floor += gap
    ceiling = 99 - gap / 2
    for i in reversed(order):
        moved[i] = ceiling = min(ceiling, moved[i])
        ceiling -= gap
    return tuple(round(moved[i], 2) for i in range(len(places)))


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, 0 without; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def share(value: float) -> str:
    """A number in [0, 1]; a dash where there is none."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def damping(value: float) -> str:
    """A damping as a number, and the plain inner product in words."""
    return f"{value:,g}" if math.isfinite(value) else "plain"


def cost(line: Standing, one: Table) -> str:
    """Network evaluations as a multiple of the reference's; a dash for what needs none."""
    own, ours = one.evaluations[line.arm.method], one.evaluations[one.reference.method]
    return f"{own / ours:.3g}" if own and ours else "–"


def words(cell: Cell) -> str:
    """red in a red triangle"""
    return f"{cell.value} in a {cell.pair[1]} {cell.pair[0]}"


def along(value: float) -> str:
    """Where a difference in [-0.5, 1] lies on a strip, in percent; lower ones at its end."""
    return f"{3 + 94 * (max(value, -0.5) + 0.5) / 1.5:.2f}"


_ENVIRONMENT = environment()
_ENVIRONMENT.filters.update({f.__name__: f for f in (signed, share, damping, cost, words, along)})
_TEMPLATE = _ENVIRONMENT.get_template("league.html")


def publish(
    store: Store, name: str, grades: Mapping[str, Sequence[Mapping[str, Any]]], tables: Sequence[Table]
) -> None:
    """grades.parquet, standings.parquet, benchmark.md and benchmark.html below benchmarks/<name>/; the newest holds."""
    rows = [{"set": title, **row} for title, found in grades.items() for row in found]
    lines = [standing_row(line, one) for one in tables for line in one.lines]
    files = {
        "grades.parquet": to_parquet(from_rows({"set": "string", "model": "string", **GRADED}, rows)),
        "standings.parquet": to_parquet(from_rows(STANDINGS, lines)),
        "benchmark.md": "\n".join(as_text(one) for one in tables).encode(),
        "benchmark.html": render_league(tables).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)


TOPS = {"set": "string", "model": "string", "method": "string", "asked": "string", "concept": "string",
        "damping": "float64", "scored": "int64", "rank": "int64", "sample_id": "string"}  # fmt: skip


def publish_tops(
    store: Store, name: str, audits: Mapping[str, Mapping[str, str]], tables: Sequence[Table], scored: int
) -> None:
    """tops.parquet: what every arm says taught each concept, at the damping of its standing, best first.

    Of the `scored` samples of a model as many as show the concept. `audits`: by set and model the audit they are of.
    """
    rows = [
        {"set": one.title, "model": model, "method": arm.method, "asked": arm.asked, "scored": scored, **top}
        for one in tables
        for model, audit in audits[one.title].items()
        for arm, damping in ((line.arm, line.damping) for line in one.lines if not line.arm.flipped)
        for top in read_table(Audit(store, audit), ranking_file(arm.method, arm.asked)).to_pylist()
        if top["damping"] == damping
    ]
    store.replace(f"benchmarks/{name}/tops.parquet", to_parquet(from_rows(TOPS, rows)))


def as_text(one: Table) -> str:
    """The table in Markdown, best first, and the comparisons that decide."""
    head = "| arm | evaluations | damping | merit | per model | P@10 in / out | reference ahead by |"
    lines = [_line(line, one) for line in one.lines if not line.arm.flipped or line.merit > 0]
    beat = best_baseline(one.lines)
    verdict = (
        f"Merit of {one.reference} less that of the best baseline, {beat.arm}: {beat.behind[0]:+.3f} to "
        f"{beat.behind[1]:+.3f} (95 % interval); model by model {_list(beat.behind_per_model)}."
    )
    lookup = next(line for line in one.lines if line.arm.method == "lookup")
    verdict += (
        f" Its mean AP less that of caption lookup: {lookup.mean_behind[0]:+.3f} to {lookup.mean_behind[1]:+.3f}; "
        f"model by model {_list(lookup.mean_behind_per_model)}."
    )
    what = f"{len(one.models)} models, {one.queries} queries in each of {len(one.cells)} cells"
    return "\n".join([f"\n## {one.title}", f"{what}.\n", head, "|---|" + "---:|" * 6, *lines, "", verdict])


def _line(line: Standing, one: Table) -> str:
    precision = f"{line.precision[0]:.2f} / {line.precision[1]:.2f}"
    behind = f"{line.behind[0]:+.3f} to {line.behind[1]:+.3f}"
    cost = one.evaluations[line.arm.method] or "-"
    numbers = f"{line.damping:g} | {line.merit:+.3f} | {_list(line.per_model)} | {precision} | {behind}"
    return f"| {line.arm} | {cost} | {numbers} |"


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{v:+.2f}" for v in values)
