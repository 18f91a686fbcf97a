"""What changed between two finished audits: `python -m jobs.diff store=results before=week-1 after=week-2`.

Prints it and writes it beside the later audit's results: `diff-<before>.parquet`, a row for each sample in either top,
`diff-<before>.summary.parquet`, a row for each concept, method and form, and `diff-<before>.html`. An audit with
`since=latest` does the same when it ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from concept_trak.audit.diff import CHANGED, NEW, Difference, Move, compare, write
from concept_trak.config import absolute
from concept_trak.report.diff_page import write_page
from concept_trak.report.index_page import write_index
from concept_trak.store.manifest import Audit, finished_manifest
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.exit_codes import ended

SHOWN = 10


@dataclass(frozen=True)
class DiffConfig:
    store: str = "results"
    before: str = ""
    after: str = ""


def diff(config: DiffConfig) -> int:
    """Compare, print and write; exit 0, or 4 if storage fails.

    Raises:
        ValueError: an audit is not named, missing or unfinished, or the two asked nothing in common.
    """
    return ended(lambda: _diff(config))


def _diff(config: DiffConfig) -> int:
    if not config.before or not config.after:
        raise ValueError("two audits are compared: before=AUDIT after=AUDIT; `python -m jobs.status` lists them")
    store = Store(absolute(config.store))
    before, after = Audit(store, config.before), Audit(store, config.after)
    finished_manifest(after)
    found = compare(before, after)
    names = [*write(before, after, found), write_page(before, after, found)]
    write_index(store)
    for difference in found:
        if difference.form == "damped":
            print("\n".join(described(difference)))
    print("\n".join(f"written    {store.uri.removeprefix('file://')}/{name}" for name in names))
    return 0


def described(d: Difference) -> Iterator[str]:
    """A line of counts, then the first of those that entered, left, or changed their rank."""
    drift = "not comparable (another model or other features)" if d.cosine is None else f"cosine {d.cosine:.6f}"
    counts = ", ".join(f"{d.count(change)} {change}" for change in ("entered", "left", "stayed"))
    data = f"of the top {d.share(NEW):.0%} is new data, {d.share(CHANGED):.0%} changed"
    yield f"{d.concept} by {d.method}: {counts}; {data}; query {drift}"
    changed = [move for move in d.moves if move.rank_before != move.rank_after]
    yield from (_line(move) for move in changed[:SHOWN])
    if len(changed) > SHOWN:
        yield f"  and {len(changed) - SHOWN} more"


def _line(move: Move) -> str:
    ranks, scores = (move.rank_before, move.rank_after), (move.score_before, move.score_after)
    rank = " -> ".join("-" if r is None else str(r) for r in ranks)
    score = " -> ".join("-" if s is None else f"{s:.3g}" for s in scores)
    return f"  {move.change:<8} {rank:<12} {score:<24} {move.sample_id:<20} {move.data:<8} {move.caption}"


if __name__ == "__main__":
    main(DiffConfig, "diff", diff)
