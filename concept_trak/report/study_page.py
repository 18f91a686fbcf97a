"""The results of a study as Parquet, Markdown and a page: every row of the table and its variants."""

from collections.abc import Sequence

from concept_trak.evaluation.benchmark import LEADERBOARD_COLUMNS, leaderboard_row
from concept_trak.evaluation.leaderboard import Leaderboard, LeaderboardLine
from concept_trak.evaluation.study import BESIDE, VariedRow
from concept_trak.report.benchmark_page import damping_text, share_text, signed_text
from concept_trak.report.table_page import TablePage, TextTable, as_markdown, render_tables
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows, to_parquet

HEAD = ("row", "what differs", "merit", "over its row", "model by model", "worst cell", "AP − base in", "out",
        "P@10 in", "out", "damping", "evaluations")  # fmt: skip
READING = (
    ("merit", "the worst cell's mean of average precision less the base rate; 0 is a random order"),
    ("over its row", "95 % interval of this merit less that of the row it comes from, by hierarchical bootstrap over "
     "models and queries; all other settings, samples and queries are the same"),
    ("damping", "chosen on the even queries for each line; all numbers except those of the last table are of the odd "
     "queries"),
    ("evaluations", "network evaluations of one training sample; a backward pass counts as two"),
)  # fmt: skip


def study_page(boards: Sequence[Leaderboard], rows: Sequence[VariedRow]) -> TablePage:
    """The page: for every row its lines in the order given, then its merits at every damping."""
    pairs = zip(boards, rows, strict=True)
    return TablePage(
        title="What makes a row work",
        lead="Every row of the table, and variants of it that differ in one setting. All have the same models, samples "
        "and queries.",
        tables=tuple(make(board, row) for board, row in pairs for make in (_comparison, _curves)),
        reading=READING,
    )


def _lines(board: Leaderboard, row: VariedRow) -> list[tuple[LeaderboardLine, str]]:
    by_name = {line.ranker.method: line for line in board.lines}
    differences = {row.row: "", **row.changes, **dict.fromkeys(BESIDE, "")}
    return [(by_name[name], difference) for name, difference in differences.items()]


def _comparison(board: Leaderboard, row: VariedRow) -> TextTable:
    models = f"{len(board.models)} models ({', '.join(board.models)})"
    return TextTable(
        title=board.title,
        note=f"{models}, {board.queries} queries in each of {len(board.cells)} cells.",
        head=HEAD,
        rows=tuple(_row(line, difference, board) for line, difference in _lines(board, row)),
        highlighted=frozenset({row.row}),
    )


def _row(line: LeaderboardLine, difference: str, board: Leaderboard) -> tuple[str, ...]:
    low, high = line.gap
    return (
        line.ranker.method,
        difference,
        signed_text(line.merit),
        "–" if line.ranker == board.reference else f"{signed_text(-high)} to {signed_text(-low)}",
        " ".join(signed_text(value, 2) for value in line.per_model),
        line.worst,
        *(signed_text(value, 2) for value in line.gain),
        *(share_text(value) for value in line.precision),
        damping_text(line.damping),
        str(board.evaluations[line.ranker.method] or "–"),
    )


def _curves(board: Leaderboard, row: VariedRow) -> TextTable:
    dampings = sorted(board.curves[board.reference])
    rankers = [line.ranker for line, _ in _lines(board, row) if line.ranker.query_kind == "own"]
    return TextTable(
        title=f"{board.title}: merit against damping",
        note="Over all queries.",
        head=("row", *(damping_text(d) for d in dampings)),
        rows=tuple((ranker.method, *(signed_text(board.curves[ranker][d], 2) for d in dampings)) for ranker in rankers),
        highlighted=frozenset({row.row}),
    )


def publish_study(store: Store, name: str, boards: Sequence[Leaderboard], page: TablePage) -> None:
    """Write study.parquet, .md and .html below benchmarks/<name>/."""
    lines = [leaderboard_row(line, board) for board in boards for line in board.lines]
    files = {
        "study.parquet": to_parquet(from_rows(LEADERBOARD_COLUMNS, lines)),
        "study.md": as_markdown(page).encode(),
        "study.html": render_tables(page).encode(),
    }
    for file, content in files.items():
        store.replace(f"benchmarks/{name}/{file}", content)
