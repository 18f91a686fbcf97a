"""Pages of tables with explanations, as one self-contained HTML file (`table.html`) and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from concept_trak.report.render import environment


@dataclass(frozen=True)
class TextTable:
    """One table of finished text. The first column is the name of the row, the others are numbers.

    `highlighted`: names of the rows to highlight.
    """

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    highlighted: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.head) for row in self.rows), f"{self.title}: a row is not as long as the head"


@dataclass(frozen=True)
class TablePage:
    """A page: its subject, its tables, and how to read them as (word, meaning)."""

    title: str
    lead: str
    tables: tuple[TextTable, ...]
    reading: tuple[tuple[str, str], ...] = ()


def render_tables(page: TablePage) -> str:
    """The page as a complete HTML document; all text is escaped. Equal pages give equal text."""
    return _TEMPLATE.render(page=page)


def as_markdown(page: TablePage) -> str:
    """The page as Markdown."""
    return "\n".join(_lines(page))


def _lines(page: TablePage) -> Iterator[str]:
    yield from (f"# {page.title}", "", page.lead, "")
    for table in page.tables:
        yield from (f"## {table.title}", "", table.note, "")
        yield _row(table.head)
        yield "|---|" + "---:|" * (len(table.head) - 1)
        yield from (*(_row(row) for row in table.rows), "")
    yield from (f"- **{word}**: {meaning}" for word, meaning in page.reading)
    yield ""


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


_TEMPLATE = environment().get_template("table.html")
