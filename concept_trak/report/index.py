"""The page over all audits of a store (`index.html`): what each asked, and where its own page and comparisons are."""

from collections.abc import Sequence
from dataclasses import dataclass

from concept_trak.report.render import environment


@dataclass(frozen=True)
class Entry:
    """One finished audit. `compared` names the earlier audits that a page of differences stands for."""

    audit: str
    finished: str
    samples: int
    concepts: tuple[str, ...]
    methods: tuple[str, ...]
    compared: tuple[str, ...] = ()


def render_index(entries: Sequence[Entry]) -> str:
    """The page as a complete HTML document, the audit finished last on top. Equal entries, equal text."""
    return _TEMPLATE.render(entries=sorted(entries, key=lambda e: (e.finished, e.audit), reverse=True))


_TEMPLATE = environment().get_template("index.html")
