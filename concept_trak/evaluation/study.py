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
"""Settings that are no row's: what differs from the study's own, one thing at a time."""
BESIDE = ("random", "lookup")


@dataclass(frozen=True)
class VariedRow:
    """One row and what comes of it by a change: by the name of each, what differs."""

    row: str
    changes: dict[str, str]


def varied_rows(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]]) -> list[VariedRow]:
    """The rows that are varied, with their variants and the runs."""
    if not config.variants:
        raise UserError("variants is empty; a study needs some: python -m jobs.study takes those of conf/study.yaml")
    found: dict[str, dict[str, str]] = {}
    for name, given in config.variants.items():
        found.setdefault(given["row"], {})[name] = change_text(variant_change(given))
    return [
        VariedRow(row, names | {changed_name(row, change): change_text(change) for change in runs})
        for row, names in found.items()
    ]


def varied_benchmark(
    config: BenchmarkConfig, families: Sequence[VariedRow], change: Mapping[str, Any]
) -> BenchmarkConfig:
    """The benchmark of the varied rows alone, with a change of its settings."""
    rows = compared_methods(config)
    alone = replace(config, methods={f.row: rows[f.row] for f in families}, variants={}, reference=families[0].row)
    return build(BenchmarkConfig, with_changes(plain_values(alone), change))


def changed_name(row: str, change: Mapping[str, Any]) -> str:
    return f"{row} {change_text(change)}"


def renamed_grade(row: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "method": changed_name(row["method"], change)}


def varied_grades(family: VariedRow, grades: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (row for row in grades if row["method"] in {family.row, *family.changes, *BESIDE} and not row["flipped"])
