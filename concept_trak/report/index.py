"""The page over all audits of a store (`index.html`): what each asked, and where its own page and comparisons are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from concept_trak.report.render import environment


@dataclass(frozen=True)
class Entry:
    """One finished audit. `compared` names the earlier audits that a page of differences stands for.

    Raises:
        ValueError: `finished` is no ISO 8601 time, as in a manifest that was altered.
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
    """The page as a complete HTML document, the audit finished last on top. Equal entries, equal text."""
    return _TEMPLATE.render(entries=sorted(entries, key=lambda e: (e.finished, e.audit), reverse=True))


def moment(finished: str) -> str:
    """The time as the page of an audit writes it: 2026-03-14 09:26 UTC."""
    return datetime.fromisoformat(finished).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


_ENVIRONMENT = environment()
_ENVIRONMENT.filters["moment"] = moment
_TEMPLATE = _ENVIRONMENT.get_template("index.html")
