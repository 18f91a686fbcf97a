"""The page: a form for the question, its progress, and the answer as pictures. It has the look of an audit's report."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from jinja2 import ChoiceLoader, FileSystemLoader

from concept_trak.attribution.method import CONCEPT_DIRECTIONS, METHODS, PUBLISHED, RECOMMENDED
from concept_trak.audit.questions import Questions
from concept_trak.audit.results import INTERVALS
from concept_trak.report.render import PIXELATED_BELOW, below, environment
from serving.answering import Progress
from serving.question import MOST_CHARACTERS, MOST_SAMPLES, MOST_TOP, Question

FOLDER = Path(__file__).parent
SCRIPT = (FOLDER / "script.js").read_text()
COLUMNS = {
    *("concept", "method", "form", "end", "rank", "sample_id", "score", "percentile", "caption", "source", "row"),
    *("duplicate_of", *INTERVALS),
}
"""The columns of a ranking; every other one is a label of the data set."""
WORDS = {
    "model": "the model is loaded",
    "query": "the gradients of the query are computed",
    "solve": "the curvature is applied",
    "score": "every sample is scored",
    "show": "captions and pictures are read",
}
"""The steps of a question in words."""


class Pages:
    """The pages of one audit, as HTML.

    Args:
        questions: the audit that is asked.
    """

    def __init__(self, questions: Questions) -> None:
        config, records = questions.config, questions.records
        jinja = environment()
        jinja.loader = ChoiceLoader([FileSystemLoader(FOLDER), jinja.loader])  # type: ignore[list-item]
        jinja.filters["quoted"] = lambda text: quote(text, safe="")
        jinja.filters["groups"] = lambda row: groups(row, config.data.uri)
        self._template = jinja.get_template("page.html")
        status = {PUBLISHED: "published", RECOMMENDED: "recommended"}
        self._constant = {
            "audit": config.audit,
            "data": config.data.uri,
            "samples": sum(record.rows for record in next(iter(records.values()))),
            "methods": {m: status.get(m, "") if m in METHODS else "" for m in config.methods},
            "similar": [m for m, row in config.methods.items() if row.query.direction in CONCEPT_DIRECTIONS],
            "labelled": bool(config.concepts) and all(concept.labels for concept in config.concepts),
            "words": WORDS,
            "most": {"characters": MOST_CHARACTERS, "samples": MOST_SAMPLES, "top": MOST_TOP},
        }

    def form(self, values: Mapping[str, Any] | None = None, problem: str = "") -> str:
        """The page with the form alone.

        Args:
            values: of its fields, as they were sent.
            problem: why they are refused.
        """
        return self._render({**asdict(Question()), **(values or {})}, problem)

    def answer(
        self, key: str, question: Question, progress: Progress, answer: tuple[dict[str, Any], Any] | None
    ) -> str:
        """The page of a question, whose form has its fields.

        Args:
            key: its id.
            question, progress: what was asked, and how far it is.
            answer: what is shown beside the table, and the table; None before the question is done.
        """
        problem = f"The question has no answer: {progress.error}" if progress.error else ""
        content = {}
        if answer is not None:
            beside, table = answer
            small = beside["resolution"] < PIXELATED_BELOW
            content = {"beside": beside, "rankings": rankings(table), "small": small}
        return self._render(asdict(question), problem, key=key, progress=progress, **content)

    def _render(self, values: Mapping[str, Any], problem: str, **content: Any) -> str:
        empty = {"key": "", "progress": None, "beside": None, "rankings": {}, "small": False}
        return self._template.render({**self._constant, **empty, **content, "values": values, "problem": problem})


def rankings(table: pa.Table) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By method and end, the samples of the damped ranking, each with its `labels`."""
    ends = dict[str, dict[str, list[dict[str, Any]]]]()
    for row in table_rows(table):
        if row["form"] == "damped":
            row["labels"] = {name: value for name, value in row.items() if name not in COLUMNS and value is not None}
            ends.setdefault(row["method"], {"top": [], "bottom": []})[row["end"]].append(row)
    return ends


def groups(row: Mapping[str, Any], data: str) -> list[str]:
    """The source and the labels of a sample in words, by which the page filters.

    Args:
        row: of a ranking, with its `labels`.
        data: `data.uri`, below which sources are named.
    """
    return [f"source = {below(row['source'], data)}", *(f"{name} = {value}" for name, value in row["labels"].items())]


def table_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as JSON has them, which knows neither infinity nor NaN."""
    return [dict(_plain(row)) for row in table.to_pylist()]


def _plain(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        yield name, None if isinstance(value, float) and not math.isfinite(value) else value
