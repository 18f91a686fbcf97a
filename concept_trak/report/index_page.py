"""The page over all audits of a store, `audits/index.html`: their questions, with links to their pages and comparisons.

It is written anew whenever an audit ends or is removed, and may lag behind the manifests.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from concept_trak.report.render import environment
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit, given_up, read_manifest, read_settings
from concept_trak.store.records import READERS
from concept_trak.store.store import Store


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
    """Write the page from the manifests of all audits and the names of their comparisons."""
    names = [name.rstrip("/") for name in store.children("audits") if name.endswith("/")]
    with ThreadPoolExecutor(READERS) as readers:
        entries = readers.map(lambda name: _entry(Audit(store, name)), names)
        page = render_index([entry for entry in entries if entry is not None]).encode()
    if store.size(INDEX) != len(page) or store.read(INDEX) != page:
        store.replace(INDEX, page)


def _entry(audit: Audit) -> Entry | None:
    """The entry of an audit; None if it is unfinished, being removed, damaged, or has no report, as a benchmark's."""
    try:
        done = read_manifest(audit)
        if done is None or given_up(audit) or "report.html" not in done["files"]:
            return None
        settings = read_settings(audit)
        methods = tuple(settings["methods"])
        features = FeatureSet(done["settings"]["fingerprints"][methods[0]])
        rows = {part["name"]: part["rows"] for part in done["parts"]}  # methods may share features: listed for each
        samples = sum(count for name, count in rows.items() if name.startswith(f"{features.parts}/"))
        concepts = tuple(concept["name"] for concept in settings["concepts"])
        files = audit.store.children(f"audits/{audit.id}")
        compared = sorted(f.removeprefix("diff-").removesuffix(".html") for f in files if _is_page(f))
        return Entry(
            audit=audit.id,
            finished=done["finished"],
            samples=samples,
            concepts=concepts,
            methods=methods,
            compared=tuple(compared),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # `jobs.verify` reports what is wrong with it


def _is_page(file: str) -> bool:
    return file.startswith("diff-") and file.endswith(".html")
