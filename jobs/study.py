"""What makes a row work, one thing at a time: `python -m jobs.study [key=value ...]`.

The rows of a benchmark and their variants (`conf/study.yaml`), and the rows under other settings (`RUNS`), each beside
the row it comes from. Writes study.md, study.html and study.parquet below `benchmarks/<name>/`; keys are those of
`jobs.benchmark`, and what is computed is kept as there, so that a killed study goes on where it stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from concept_trak.report.league import damping, share, signed
from concept_trak.report.sheet import Ledger, Sheet, as_markdown, render_sheet
from concept_trak.standings import Arm, Standing, Table, table
from concept_trak.store.commit import Store
from concept_trak.store.tables import from_rows, to_parquet
from jobs.benchmark import compared, costs
from jobs.configure import absolute, build, main, plain_values
from jobs.entrants import BenchmarkConfig, rows_of
from jobs.failure import ended
from jobs.tables import STANDINGS, standing_row
from jobs.variants import change_of, changed, words

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
READING = (
    ("merit", "the worst cell's mean of average precision less the base rate; 0 is a random order"),
    ("over its row", "95 % interval of this merit less that of the row it comes from, by hierarchical bootstrap over "
     "models and queries; all other settings, samples and queries are the same"),
    ("damping", "chosen on the even queries, each for itself; all numbers but the last table's are over the odd ones"),
    ("evaluations", "network evaluations of one training sample; a backward counts two"),
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One row and what comes of it by a change: by the name of each, what differs."""

    row: str
    changes: dict[str, str]


def study(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]] = RUNS) -> int:
    """Every row, variant and run on every model, then one page; returns the exit code."""
    return ended(lambda: _study(replace(config, store=absolute(config.store)), runs))


def _study(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]]) -> int:
    families, grades, cost = families_of(config, runs), dict[str, list[dict[str, Any]]](), costs(config)
    for one in (found := compared(config)):
        grades[one.title] = [row for row in one.grades if row["asked"] != "concept"]
    for change in runs:
        for one in compared(run_of(config, families, change)):
            grades[one.title] += [_renamed(row, change) for row in one.grades if row["asked"] == "own"]
    cost |= {_name(f.row, change): cost[f.row] for f in families for change in runs}
    tables = [
        table(f"{one.title}, from {f.row}", list(_of(f, grades[one.title])), one.cells, Arm(f.row, "own"), cost)
        for one in found
        for f in families
    ]
    page = sheet(tables, families * len(found))
    _publish(Store(config.store), config.name, tables, page)
    print(as_markdown(page))
    print(f"page       {config.store}/benchmarks/{config.name}/study.html")
    return 0


def families_of(config: BenchmarkConfig, runs: Sequence[Mapping[str, Any]]) -> list[Family]:
    """The rows that are varied, with their variants and the runs."""
    if not config.variants:
        raise ValueError("variants is empty; a study needs some: python -m jobs.study takes those of conf/study.yaml")
    found: dict[str, dict[str, str]] = {}
    for name, given in config.variants.items():
        found.setdefault(given["row"], {})[name] = words(change_of(given))
    return [Family(row, names | {_name(row, change): words(change) for change in runs}) for row, names in found.items()]


def run_of(config: BenchmarkConfig, families: Sequence[Family], change: Mapping[str, Any]) -> BenchmarkConfig:
    """The benchmark of the varied rows alone, with a change of its settings."""
    rows = rows_of(config)
    alone = replace(config, methods={f.row: rows[f.row] for f in families}, variants={}, reference=families[0].row)
    return build(BenchmarkConfig, changed(plain_values(alone), change))


def _name(row: str, change: Mapping[str, Any]) -> str:
    return f"{row} {words(change)}"


def _renamed(row: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "method": _name(row["method"], change)}


def _of(family: Family, grades: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (row for row in grades if row["method"] in {family.row, *family.changes, *BESIDE} and not row["flipped"])


def sheet(tables: Sequence[Table], families: Sequence[Family]) -> Sheet:
    """The page: for every family its lines in the order given, then its merits at every damping."""
    ledgers = [make(one, f) for one, f in zip(tables, families, strict=True) for make in (_compared, _curves)]
    lead = (
        "Rows with one thing changed, each beside the row it comes from: the same models, samples and queries for all."
    )
    return Sheet("What makes a row work", lead, tuple(ledgers), READING)


def _lines(one: Table, family: Family) -> list[tuple[Standing, str]]:
    by_name = {line.arm.method: line for line in one.lines}
    return [
        (by_name[name], what) for name, what in {family.row: "", **family.changes, **dict.fromkeys(BESIDE, "")}.items()
    ]


def _compared(one: Table, family: Family) -> Ledger:
    head = ("row", "what differs", "merit", "over its row", "model by model", "worst cell", "AP − base in", "out",
            "P@10 in", "out", "damping", "evaluations")  # fmt: skip
    rows = tuple(_row(line, what, one) for line, what in _lines(one, family))
    note = (
        f"{len(one.models)} models ({', '.join(one.models)}), {one.queries} queries in each of {len(one.cells)} cells."
    )
    return Ledger(one.title, note, head, rows, frozenset({family.row}))


def _row(line: Standing, what: str, one: Table) -> tuple[str, ...]:
    low, high = line.behind
    over = "–" if line.arm == one.reference else f"{signed(-high)} to {signed(-low)}"
    each = " ".join(signed(value, 2) for value in line.per_model)
    sides = (*(signed(value, 2) for value in line.gain), *(share(value) for value in line.precision))
    cost = str(one.evaluations[line.arm.method] or "–")
    return (line.arm.method, what, signed(line.merit), over, each, line.worst, *sides, damping(line.damping), cost)


def _curves(one: Table, family: Family) -> Ledger:
    dampings = sorted(one.curves[one.reference])
    lines = [line.arm for line, _ in _lines(one, family) if line.arm.asked == "own"]
    rows = tuple((arm.method, *(signed(one.curves[arm][d], 2) for d in dampings)) for arm in lines)
    head = ("row", *(damping(d) for d in dampings))
    return Ledger(f"{one.title}: merit against damping", "Over all queries.", head, rows, frozenset({family.row}))


def _publish(store: Store, name: str, tables: Sequence[Table], page: Sheet) -> None:
    lines = [standing_row(line, one) for one in tables for line in one.lines]
    files = {
        "study.parquet": to_parquet(from_rows(STANDINGS, lines)),
        "study.md": as_markdown(page).encode(),
        "study.html": render_sheet(page).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)


if __name__ == "__main__":
    main(BenchmarkConfig, "study", study)
