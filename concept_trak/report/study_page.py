from collections.abc import Sequence

from concept_trak.evaluation.benchmark import STANDINGS, standing_row
from concept_trak.evaluation.leaderboard import Standing, Table
from concept_trak.evaluation.study import BESIDE, Family
from concept_trak.report.benchmark_page import damping, share, signed
from concept_trak.report.table_page import Ledger, Sheet, as_markdown, render_sheet
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

READING = (
    ("merit", "the worst cell's mean of average precision less the base rate; 0 is a random order"),
    ("over its row", "95 % interval of this merit less that of the row it comes from, by hierarchical bootstrap over "
     "models and queries; all other settings, samples and queries are the same"),
    ("damping", "chosen on the even queries, each for itself; all numbers but the last table's are over the odd ones"),
    ("evaluations", "network evaluations of one training sample; a backward counts two"),
)  # fmt: skip


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
