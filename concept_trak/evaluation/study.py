"""A study: it compares rows of the table with their variants, and with themselves under other benchmark settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from concept_trak import UserError
from concept_trak.config import build, plain_values
from concept_trak.evaluation.suite import BenchmarkConfig, change_text, compared_methods, variant_change, with_changes

RUNS: tuple[dict[str, Any], ...] = (
    {"each": 4},
    {"parameters": "attention"},
    {"parameters": "cross_attention"},
    {"parameters": r"\.ff\."},
    {"parameters": r"\.weight$"},
    {"projector": {"dim": 256}},
    {"projector": {"dim": 8192}},
    {"projector": {"kind": "mask"}},
    {"projector": {"seed": 1}},
)
"""Changes of settings that no row has; each changes one setting of the benchmark."""
BESIDE = ("random", "lookup")
"""Baselines that are listed with every row."""


@dataclass(frozen=True)
class VariedRow:
    """A row of the table, and its changes in words, by their names."""

    row: str
    changes: dict[str, str]


def varied_rows(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]]) -> list[VariedRow]:
    """The rows that have variants, each with the changes of its variants and of the runs."""
    if not config.variants:
        raise UserError(
            "variants is empty; a study needs at least one, as in conf/study.yaml, the default of jobs.study"
        )
    changes: dict[str, dict[str, str]] = {}
    for name, variant in config.variants.items():
        changes.setdefault(variant["row"], {})[name] = change_text(variant_change(variant))
    return [
        VariedRow(row, own | {changed_name(row, change): change_text(change) for change in runs})
        for row, own in changes.items()
    ]


def varied_benchmark(config: BenchmarkConfig, rows: Sequence[VariedRow], change: Mapping[str, Any]) -> BenchmarkConfig:
    """The benchmark of only the varied rows, with a change of its settings."""
    methods = compared_methods(config)
    alone = replace(config, methods={r.row: methods[r.row] for r in rows}, variants={}, reference=rows[0].row)
    return build(BenchmarkConfig, with_changes(plain_values(alone), change))


def changed_name(row: str, change: Mapping[str, Any]) -> str:
    """The name of a row under a changed setting: "fit_trak each=4"."""
    return f"{row} {change_text(change)}"


def renamed_grade(grade: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A grade of a run, with the run's change in the method's name."""
    return {**grade, "method": changed_name(grade["method"], change)}


def varied_grades(row: VariedRow, grades: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The grades of a row, its variants and the baselines, without flipped signs."""
    methods = {row.row, *row.changes, *BESIDE}
    return (grade for grade in grades if grade["method"] in methods and not grade["flipped"])
