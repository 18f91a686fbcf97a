"""A benchmark's results as people read them: Parquet, Markdown, a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from concept_trak.report.league import render_league
from concept_trak.standings import Standing, Table, best_baseline
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit, read_table
from concept_trak.store.tables import from_rows, to_parquet
from concept_trak.trial import GRADE_KINDS, ranking_file

GRADED = {"method": "string", "asked": "string", **GRADE_KINDS}
STANDINGS = {"set": "string", "arm": "string", "method": "string", "asked": "string", "flipped": "int32",
             "evaluations": "int64", "damping": "float64", "merit": "float64", "worst_cell": "string",
             "merit_per_model": "vector", "gain_in": "float64", "gain_out": "float64", "precision_in": "float64",
             "precision_out": "float64", "recall_in": "float64", "recall_out": "float64", "behind_low": "float64",
             "behind_high": "float64", "behind_per_model": "vector", "mean_behind_low": "float64",
             "mean_behind_high": "float64", "mean_behind_per_model": "vector"}  # fmt: skip


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


def standing_row(line: Standing, one: Table) -> dict[str, Any]:
    """One line with the columns of `STANDINGS`."""
    sides = zip(("gain", "precision", "recall"), (line.gain, line.precision, line.recall), strict=True)
    return {
        "set": one.title,
        "arm": str(line.arm),
        **line.arm._asdict(),
        "evaluations": one.evaluations[line.arm.method],
        "damping": line.damping,
        "merit": line.merit,
        "worst_cell": line.worst,
        "merit_per_model": line.per_model,
        **{f"{name}_{where}": value for name, pair in sides for where, value in zip(("in", "out"), pair, strict=True)},
        "behind_low": line.behind[0],
        "behind_high": line.behind[1],
        "behind_per_model": line.behind_per_model,
        "mean_behind_low": line.mean_behind[0],
        "mean_behind_high": line.mean_behind[1],
        "mean_behind_per_model": line.mean_behind_per_model,
    }


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
