"""Compare two finished audits: `python -m jobs.diff store=results before=week-1 after=week-2`.

Prints the differences and writes them to the later audit's folder: `diff-<before>.parquet` has a row for each sample in
either top table, `diff-<before>.summary.parquet` one for each concept, method and form, and `diff-<before>.html` is a
page. An audit with `since=latest` does the same when it ends.
"""

from dataclasses import dataclass

from concept_trak import UserError
from concept_trak.audit.diff import compare, write_differences
from concept_trak.config import absolute
from concept_trak.report.diff_page import describe_difference, write_page
from concept_trak.report.index_page import write_index
from concept_trak.store.manifest import Audit, finished_manifest
from concept_trak.store.store import Store
from jobs.configure import main


@dataclass(frozen=True)
class DiffConfig:
    store: str = "results"
    before: str = ""
    after: str = ""


def diff(config: DiffConfig) -> int:
    """Compare two audits, print the differences and write them."""
    if not config.before or not config.after:
        raise UserError("give the two audits: before=AUDIT after=AUDIT; `python -m jobs.status` lists the audits")
    store = Store(absolute(config.store))
    before, after = Audit(store, config.before), Audit(store, config.after)
    finished_manifest(after)
    differences = compare(before, after)
    names = [*write_differences(before, after, differences), write_page(before, after, differences)]
    write_index(store)
    for difference in differences:
        if difference.form == "damped":
            print("\n".join(describe_difference(difference)))
    print("\n".join(f"written    {store.uri.removeprefix('file://')}/{name}" for name in names))
    return 0


if __name__ == "__main__":
    main(diff, "diff", DiffConfig)
