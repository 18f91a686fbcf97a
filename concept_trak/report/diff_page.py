"""Two audits compared as a page beside the later one, `diff-<before>.html`: the tables, in words."""

from collections.abc import Sequence

from concept_trak.audit.diff import CHANGED, NEW, Difference, Move
from concept_trak.report.render import number, percent, ratio
from concept_trak.report.table_page import Ledger, Sheet, render_sheet
from concept_trak.store.manifest import Audit, write_bytes

HEAD = ("sample", "change", "rank before", "rank now", "score before", "score now", "data", "caption")
READING = (
    ("Change", "A sample entered the top, left it, or stayed; those that stayed at their rank are not listed."),
    ("Data", "new: the earlier audit had no feature under this id. changed: it had another one, so image, caption or "
     "both are others; where the audits have no features in common, all that is known is that the file was "
     "written anew. removed: the later audit has no feature under this id. same: all others."),
    ("Cosine of the queries", "Between both audits' features of the concept: 1 where the model did not change."),
)  # fmt: skip


def page_file(before: Audit) -> str:
    """Below the later audit."""
    return f"diff-{before.id}.html"


def write_page(before: Audit, after: Audit, found: Sequence[Difference]) -> str:
    """Put the page there if it is absent; its name."""
    ledgers = tuple(_ledger(d) for d in found if d.form == "damped")
    lead = f"What changed in the answers of audit {after.id} since audit {before.id}."
    write_bytes(
        after, page_file(before), render_sheet(Sheet(f"{after.id} since {before.id}", lead, ledgers, READING)).encode()
    )
    return after.name(page_file(before))


def _ledger(d: Difference) -> Ledger:
    counts = ", ".join(f"{d.count(change):,} {change}" for change in ("entered", "left", "stayed"))
    shares = f"{percent(100 * d.share(NEW))} % of the top is new data, {percent(100 * d.share(CHANGED))} % changed data"
    drift = "not comparable (another model or other features)" if d.cosine is None else ratio(d.cosine)
    moved = tuple(_row(move) for move in d.moves if move.rank_before != move.rank_after)
    return Ledger(f"{d.concept} by {d.method}", f"{counts}; {shares}; cosine of the queries: {drift}.", HEAD, moved)


def _row(m: Move) -> tuple[str, ...]:
    ranks = tuple("–" if rank is None else f"{rank:,}" for rank in (m.rank_before, m.rank_after))
    scores = tuple("–" if score is None else number(score) for score in (m.score_before, m.score_after))
    return (m.sample_id, m.change, *ranks, *scores, m.data, m.caption)
