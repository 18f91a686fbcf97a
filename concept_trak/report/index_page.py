"""The page over all audits of a store, `audits/index.html`: their questions, with links to their pages and comparisons.

It is written anew whenever an audit ends or is removed, and may lag behind the manifests.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from concept_trak.report.render import environment
from concept_trak.store.manifest import GIVEN_UP, Audit
from concept_trak.store.records import READERS
from concept_trak.store.store import Store
from concept_trak.store.summaries import AuditSummary, keep_summaries, read_summaries, summarize_audit


@dataclass(frozen=True)
class Entry:
    """One finished audit. `compared` has the names of the earlier audits that it was compared with.

    Raises:
        ValueError: `finished` is not an ISO 8601 time, as in an altered manifest.
    """

    audit: str
    finished: str
    samples: int
    concepts: tuple[str, ...]
    methods: tuple[str, ...]
    compared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        moment(self.finished)


def render_index(entries: Sequence[Entry]) -> str:
    """The page as a complete HTML document, the latest audit first. Equal entries give equal text."""
    return _TEMPLATE.render(entries=sorted(entries, key=lambda e: (e.finished, e.audit), reverse=True))


def moment(finished: str) -> str:
    """The time in the format of an audit's page: 2026-03-14 09:26 UTC."""
    return datetime.fromisoformat(finished).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


_ENVIRONMENT = environment()
_ENVIRONMENT.filters["moment"] = moment
_TEMPLATE = _ENVIRONMENT.get_template("index.html")
INDEX = "audits/index.html"


def write_index(store: Store) -> None:
    """Write the page from the summaries of all audits and the names of their comparisons."""
    names = [name.rstrip("/") for name in store.children("audits") if name.endswith("/")]
    earlier = read_summaries(store)
    with ThreadPoolExecutor(READERS) as readers:
        summaries = readers.map(lambda name: _summary(Audit(store, name), earlier), names)
        finished = [summary for summary in summaries if summary is not None]
        entries = [entry for entry in readers.map(lambda done: _entry(store, done), finished) if entry is not None]
    keep_summaries(store, finished)
    page = render_index(entries).encode()
    if store.size(INDEX) != len(page) or store.read(INDEX) != page:
        store.replace(INDEX, page)


def _summary(audit: Audit, earlier: Mapping[str, AuditSummary]) -> AuditSummary | None:
    try:
        return summarize_audit(audit, earlier)
    except (FileNotFoundError, ValueError):
        return None  # `jobs.verify` reports what is wrong with it


def _entry(store: Store, done: AuditSummary) -> Entry | None:
    """The entry of an audit; None if it is being removed, damaged, or has no report, as a benchmark's."""
    files = store.children(f"audits/{done.audit}")
    if not done.report or not done.methods or GIVEN_UP in files:
        return None
    try:
        return Entry(
            audit=done.audit,
            finished=done.finished,
            samples=done.samples,
            concepts=done.concepts,
            methods=done.methods,
            compared=tuple(sorted(f.removeprefix("diff-").removesuffix(".html") for f in files if _is_page(f))),
        )
    except ValueError:
        return None


def _is_page(file: str) -> bool:
    return file.startswith("diff-") and file.endswith(".html")
