"""Tables with words around them, as one self-contained HTML page (`sheet.html`) and as Markdown.

What stands in them comes as text: whoever fills a sheet knows how its numbers are to be read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from concept_trak.report.render import environment


@dataclass(frozen=True)
class Ledger:
    """One table. The first column names its row, the others hold numbers; `ours` are the names of rows to stand out."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ours: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), f"{self.title}: a row is not as long as the head"


@dataclass(frozen=True)
class Sheet:
    """A page: what it is about, its tables, and how they are to be read, as (word, meaning)."""

    title: str
    lead: str
    ledgers: tuple[Ledger, ...]
    reading: tuple[tuple[str, str], ...] = ()


def render_sheet(sheet: Sheet) -> str:
    """The page as a complete HTML document; all text is escaped. Equal sheets, equal text."""
    return _TEMPLATE.render(sheet=sheet)


def as_markdown(sheet: Sheet) -> str:
    return "\n".join(_lines(sheet))


def _lines(sheet: Sheet) -> Iterator[str]:
    yield from (f"# {sheet.title}", "", sheet.lead, "")
    for ledger in sheet.ledgers:
        yield from (f"## {ledger.title}", "", ledger.note, "")
        yield _row(ledger.head)
        yield "|---|" + "---:|" * (len(ledger.head) - 1)
        yield from (*(_row(row) for row in ledger.rows), "")
    yield from (f"- **{word}**: {meaning}" for word, meaning in sheet.reading)
    yield ""


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


_TEMPLATE = environment().get_template("sheet.html")
