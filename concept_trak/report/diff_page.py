"""The comparison of two audits as a page beside the later one, `diff-<before>.html`."""

from collections.abc import Iterator, Sequence

from concept_trak.audit.diff import CHANGED, NEW, Difference, Move
from concept_trak.data.text import escaped, one_line
from concept_trak.report.render import number, percent, ratio
from concept_trak.report.table_page import TablePage, TextTable, render_tables
from concept_trak.store.manifest import Audit, write_bytes

HEAD = ("sample", "change", "rank before", "rank now", "score before", "score now", "data", "caption")
READING = (
    ("Change", "A sample entered the top, left it, or stayed. Samples that stayed at their rank are not listed."),
    ("Data", "new: the earlier audit has no feature under this id. changed: it has a different one, so the image, the "
     "caption or both differ; if the audits have no features in common, only the time at which the file was written is "
     "compared. removed: the later audit has no feature under this id. same: all others."),
    ("Cosine of the queries", "Between both audits' features of the concept: 1 if the model did not change."),
)  # fmt: skip


def page_file(before: Audit) -> str:
    """The page's name below the later audit."""
    return f"diff-{before.id}.html"


def write_page(before: Audit, after: Audit, differences: Sequence[Difference]) -> str:
    """Write the page if it is absent; returns its name in the store."""
    page = TablePage(
        title=f"{after.id} since {before.id}",
        lead=f"How the rankings of audit {after.id} differ from those of audit {before.id}.",
        tables=tuple(_table(d) for d in differences if d.form == "damped"),
        reading=READING,
    )
    write_bytes(after, page_file(before), render_tables(page).encode())
    return after.name(page_file(before))


def _table(d: Difference) -> TextTable:
    counts = ", ".join(f"{d.count(change):,} {change}" for change in ("entered", "left", "stayed"))
    shares = f"{percent(100 * d.share(NEW))} % of the top is new data, {percent(100 * d.share(CHANGED))} % changed data"
    drift = "not comparable (another model or other features)" if d.cosine is None else ratio(d.cosine)
    return TextTable(
        title=f"{d.concept} by {d.method}",
        note=f"{counts}; {shares}; cosine of the queries: {drift}.",
        head=HEAD,
        rows=tuple(_row(move) for move in d.moves if move.rank_before != move.rank_after),
    )


def _row(m: Move) -> tuple[str, ...]:
    ranks = tuple("–" if rank is None else f"{rank:,}" for rank in (m.rank_before, m.rank_after))
    scores = tuple("–" if score is None else number(score) for score in (m.score_before, m.score_after))
    return (m.sample_id, m.change, *ranks, *scores, m.data, m.caption)


LINES = 10  # of a comparison on a terminal


def describe_difference(d: Difference) -> Iterator[str]:
    """A line of counts, then the first samples that entered, left, or changed their rank."""
    drift = "not comparable (another model or other features)" if d.cosine is None else f"cosine {d.cosine:.6f}"
    counts = ", ".join(f"{d.count(change)} {change}" for change in ("entered", "left", "stayed"))
    data = f"of the top {d.share(NEW):.0%} is new data, {d.share(CHANGED):.0%} changed"
    yield f"{d.concept} by {d.method}: {counts}; {data}; query {drift}"
    changed = [move for move in d.moves if move.rank_before != move.rank_after]
    yield from (_text_line(move) for move in changed[:LINES])
    if len(changed) > LINES:
        yield f"  and {len(changed) - LINES} more"


def _text_line(move: Move) -> str:
    ranks, scores = (move.rank_before, move.rank_after), (move.score_before, move.score_after)
    rank = " -> ".join("-" if r is None else str(r) for r in ranks)
    score = " -> ".join("-" if s is None else f"{s:.3g}" for s in scores)
    sample = f"{escaped(move.sample_id):<20} {move.data:<8} {one_line(move.caption, 100)}"
    return f"  {move.change:<8} {rank:<12} {score:<24} {sample}"
