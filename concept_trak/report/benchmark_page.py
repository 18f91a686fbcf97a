"""A benchmark's results as Parquet, Markdown, and one self-contained HTML page.

`benchmark.html` has the structure and the words. This module computes how the reference compares with the best
baseline, and the geometry of the chart.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from concept_trak.evaluation.benchmark import GRADE_COLUMNS, LEADERBOARD_COLUMNS, leaderboard_row, ranking_file
from concept_trak.evaluation.damping_choice import DampingLine
from concept_trak.evaluation.leaderboard import Cell, Leaderboard, LeaderboardLine, best_baseline
from concept_trak.report.chart import HUES, Chart, Curve, Dot, spread_apart
from concept_trak.report.render import environment
from concept_trak.store.manifest import Audit, read_table
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

LABEL_HEIGHT = 17
"""Height of the name of a curve, in pixels."""
PLAIN_GAP = 1.0
"""Distance on the axis between the strongest finite damping and the plain inner product, in decades."""


def merit_chart(board: Leaderboard, lines: Sequence[LeaderboardLine]) -> Chart:
    """Merit of `lines` against damping. The x axis is logarithmic; the plain inner product is at its right end."""
    merits = [board.curves[line.ranker] for line in lines]
    x = _damping_positions({damping for by_damping in merits for damping in by_damping})
    low, high, step = _merit_axis([merit for by_damping in merits for merit in by_damping.values()])

    def y(merit: float) -> float:
        return round(3 + 94 * (high - merit) / (high - low), 2)

    height = max(380, LABEL_HEIGHT * len(lines) + 40)
    gap = 100 * LABEL_HEIGHT / height
    labels = spread_apart([y(curve[max(curve)]) for curve in merits], gap, 1 + gap / 2, 99 - gap / 2)
    hues = _hues(board.reference.method, lines)
    curves = tuple(
        Curve(
            name=str(line.ranker),
            hue=hues.get(line.ranker.method, -1),
            points=tuple((x[damping], y(merit)) for damping, merit in sorted(by_damping.items())),
            dots=(Dot(x[line.damping], y(by_damping[line.damping]), str(line.ranker)),),
            label=label,
            lead=line.ranker.method == board.reference.method and line.ranker.query_kind != "concept",
            dashed=line.ranker.query_kind == "concept",
            hollow=line.ranker.query_kind == "none",
        )
        for line, by_damping, label in zip(lines, merits, labels, strict=True)
    )
    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    return Chart(curves, tuple(sorted(x.items())), tuple((round(t, 6), y(t)) for t in ticks), height)


def outcome(best: LeaderboardLine) -> str:
    """How the reference compares with the best baseline.

    Returns:
        `better` or `worse` if the interval excludes 0 and every model agrees, `mixed` if the interval excludes 0 and
        some model does not agree, else `open`.
    """
    low, high = best.gap
    if low <= 0 <= high:
        return "open"
    agree = all((gap > 0) == (low > 0) and gap != 0 for gap in best.gap_per_model)
    return ("better" if low > 0 else "worse") if agree else "mixed"


@dataclass(frozen=True)
class DatasetResult:
    """One data set on the page. `above`: the lines with a higher merit than the reference."""

    board: Leaderboard
    reference: LeaderboardLine
    best: LeaderboardLine
    outcome: str
    above: tuple[LeaderboardLine, ...]
    lines: tuple[LeaderboardLine, ...]
    flipped: tuple[LeaderboardLine, ...]
    chart: Chart
    by_caption: tuple[LeaderboardLine, ...]


def dataset_result(board: Leaderboard) -> DatasetResult:
    """The values of the page for one data set."""
    reference = next(line for line in board.lines if line.ranker == board.reference)
    best = best_baseline(board.lines)
    lines = tuple(line for line in board.lines if not line.ranker.flipped)
    return DatasetResult(
        board=board,
        reference=reference,
        best=best,
        outcome=outcome(best),
        above=tuple(line for line in lines if line.merit > reference.merit),
        lines=lines,
        flipped=tuple(line for line in board.lines if line.ranker.flipped),
        chart=merit_chart(board, lines),
        by_caption=by_caption(board),
    )


def render_benchmark(boards: Sequence[Leaderboard]) -> str:
    """The page of a benchmark as a complete HTML document, one section a data set. Equal input gives equal text."""
    return _TEMPLATE.render(results=[dataset_result(board) for board in boards])


def _damping_positions(dampings: set[float]) -> dict[float, float]:
    """Percent from the left by damping."""
    finite = sorted(math.log10(d) for d in dampings if math.isfinite(d))
    last = finite[-1] + PLAIN_GAP if finite else 0.0
    decades = {d: math.log10(d) if math.isfinite(d) else last for d in dampings}
    first, width = min(decades.values()), max(decades.values()) - min(decades.values())
    return {d: round(5 + 92 * (value - first) / width, 2) if width else 50.0 for d, value in decades.items()}


def _merit_axis(merits: Sequence[float]) -> tuple[float, float, float]:
    """The ends of the axis, which includes 0, and the step of its ticks, at most ten."""
    lowest, highest = min(0.0, *merits), max(0.0, *merits)
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if highest - lowest <= 8 * s)
    return step * math.floor(lowest / step - 1e-9), step * math.ceil(highest / step + 1e-9), step


def _hues(reference: str, lines: Sequence[LeaderboardLine]) -> dict[str, int]:
    """Hue by method: the reference has the first, the others follow by merit; methods without gradients are grey."""
    methods = dict.fromkeys([reference, *(line.ranker.method for line in lines if line.ranker.query_kind != "none")])
    return {method: hue for hue, method in enumerate(itertools.islice(methods, HUES))}


def signed_text(value: float, digits: int = 3) -> str:
    """A difference with its sign, 0 without; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def share_text(value: float) -> str:
    """A number in [0, 1]; a dash if it is not finite."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def damping_text(value: float) -> str:
    """A damping as a number; `plain` is the inner product without K."""
    return f"{value:,g}" if math.isfinite(value) else "plain"


def relative_cost(line: LeaderboardLine, board: Leaderboard) -> str:
    """Network evaluations as a multiple of the reference's; a dash for a method that needs none."""
    own, reference = board.evaluations[line.ranker.method], board.evaluations[board.reference.method]
    return f"{own / reference:.3g}" if own and reference else "–"


def cell_words(cell: Cell) -> str:
    """red in a red triangle"""
    return f"{cell.value} in a {cell.pair[1]} {cell.pair[0]}"


def strip_position(value: float) -> str:
    """Percent from the left of a difference in [-0.5, 1]; lower values are drawn at the left end."""
    return f"{3 + 94 * (max(value, -0.5) + 0.5) / 1.5:.2f}"


_ENVIRONMENT = environment()
_FILTERS = (signed_text, share_text, damping_text, relative_cost, cell_words, strip_position)
_ENVIRONMENT.filters.update({f.__name__: f for f in _FILTERS})
_TEMPLATE = _ENVIRONMENT.get_template("benchmark.html")


def publish_benchmark(
    store: Store, name: str, grades: Mapping[str, Sequence[Mapping[str, Any]]], boards: Sequence[Leaderboard]
) -> None:
    """Write the grades, the leaderboard and the page below benchmarks/<name>/, in place of earlier ones."""
    rows = [{"set": title, **row} for title, graded in grades.items() for row in graded]
    lines = [leaderboard_row(line, board) for board in boards for line in board.lines]
    files = {
        "grades.parquet": to_parquet(from_rows({"set": "string", "model": "string", **GRADE_COLUMNS}, rows)),
        "leaderboard.parquet": to_parquet(from_rows(LEADERBOARD_COLUMNS, lines)),
        "benchmark.md": "\n".join(as_text(board) for board in boards).encode(),
        "benchmark.html": render_benchmark(boards).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)


TOPS = {"set": "string", "model": "string", "method": "string", "query_kind": "string", "concept": "string",
        "damping": "float64", "scored": "int64", "rank": "int64", "sample_id": "string"}  # fmt: skip


def publish_tops(
    store: Store, name: str, audits: Mapping[str, Mapping[str, str]], boards: Sequence[Leaderboard], scored: int
) -> None:
    """Write tops.parquet: the head of every ranking at its chosen damping, best first.

    Args:
        store: where benchmarks/<name>/ is.
        name: the benchmark's name.
        audits: by data set and model, the id of the audit that has the rankings.
        boards: the leaderboards, which have each ranking's damping.
        scored: samples ranked in each model; a head has as many rows as there are samples that show the concept.
    """
    rows = [
        {
            "set": board.title,
            "model": model,
            "method": ranker.method,
            "query_kind": ranker.query_kind,
            "scored": scored,
            **top,
        }
        for board in boards
        for model, audit in audits[board.title].items()
        for ranker, damping in ((line.ranker, line.damping) for line in board.lines if not line.ranker.flipped)
        for top in read_table(Audit(store, audit), ranking_file(ranker.method, ranker.query_kind)).to_pylist()
        if top["damping"] == damping
    ]
    store.replace(f"benchmarks/{name}/tops.parquet", to_parquet(from_rows(TOPS, rows)))


def as_text(board: Leaderboard) -> str:
    """The leaderboard in Markdown, best first, with the comparisons to the best baseline and to caption lookup."""
    head = "| ranking | evaluations | damping | merit | per model | P@10 in / out | reference ahead by |"
    lines = [_line(line, board) for line in board.lines if not line.ranker.flipped or line.merit > 0]
    best = best_baseline(board.lines)
    lookup = next(line for line in board.lines if line.ranker.method == "lookup")
    comparison = (
        f"Merit of {board.reference} less that of the best baseline, {best.ranker}: {_interval(best.gap)} "
        f"(95 % interval); model by model {_list(best.gap_per_model)}. Its mean AP less that of caption lookup: "
        f"{_interval(lookup.mean_gap)}; model by model {_list(lookup.mean_gap_per_model)}."
    )
    sizes = f"{len(board.models)} models, {board.queries} queries in each of {len(board.cells)} cells"
    table = [f"\n## {board.title}", f"{sizes}.\n", head, "|---|" + "---:|" * 6, *lines, "", comparison]
    return "\n".join([*table, *_captions_as_text(board)])


def by_caption(board: Leaderboard) -> tuple[LeaderboardLine, ...]:
    """The lines by what they find among the carriers whose caption does not name the concept, the best first.

    Flipped signs are left out. Empty if every caption names what its image shows.
    """
    lines = (line for line in board.lines if not line.ranker.flipped and math.isfinite(line.gain_unnamed))
    return tuple(sorted(lines, key=lambda line: -line.gain_unnamed))


def _captions_as_text(board: Leaderboard) -> list[str]:
    """In Markdown, what each ranking finds by what captions name."""
    lines = [
        f"| {line.ranker} | {line.gain_named:+.3f} | {line.gain_unnamed:+.3f} | {_interval(line.unnamed_gap)} |"
        for line in by_caption(board)
    ]
    head = "| ranking | AP - base, caption names it | caption does not | reference ahead among the latter by |"
    return ["", head, "|---|" + "---:|" * 3, *lines] if lines else []


def dampings_as_text(title: str, lines: Sequence[DampingLine]) -> str:
    """In Markdown, what each ranker finds at the damping chosen without labels, at the default and at the best one."""
    head = (
        "| ranking | chosen | mean (merit) at it | reference's mean ahead by | P@10 in / out | mean (merit) at 100 "
        "| best damping: mean (merit) |"
    )
    return "\n".join(
        [f"\n## {title}: damping without labels\n", head, "|---|" + "---:|" * 6, *map(_damping_line, lines)]
    )


def _damping_line(line: DampingLine) -> str:
    chosen, default, best = (f"{mean:+.3f} ({worst:+.3f})" for mean, worst in (line.chosen, line.default, line.best))
    dampings = " ".join(f"{damping:g}" for damping in line.dampings)
    precision = f"{line.precision[0]:.2f} / {line.precision[1]:.2f}"
    at_choice = f"{dampings} | {chosen} | {_interval(line.gap)} | {precision}"
    return f"| {line.ranker} | {at_choice} | {default} | {line.best_damping:g}: {best} |"


def _line(line: LeaderboardLine, board: Leaderboard) -> str:
    precision = f"{line.precision[0]:.2f} / {line.precision[1]:.2f}"
    cost = board.evaluations[line.ranker.method] or "-"
    numbers = f"{line.damping:g} | {line.merit:+.3f} | {_list(line.per_model)} | {precision}"
    return f"| {line.ranker} | {cost} | {numbers} | {_interval(line.gap)} |"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:+.3f} to {ends[1]:+.3f}"


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:+.2f}" for value in values)
