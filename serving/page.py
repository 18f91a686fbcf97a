"""The page: a form for the question, its progress, and the answer as pictures. It has the look of an audit's report."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from jinja2 import ChoiceLoader, FileSystemLoader

from concept_trak.attribution.method import CONCEPT_DIRECTIONS, METHODS, PUBLISHED, RECOMMENDED
from concept_trak.audit.comparison import Overlap
from concept_trak.audit.layer_scores import Through
from concept_trak.audit.questions import Questions
from concept_trak.audit.results import INTERVALS
from concept_trak.report.audit_page import Thumb
from concept_trak.report.render import PIXELATED_BELOW, SIFT, environment
from concept_trak.store.tables import read_parquet
from serving.answering import Progress
from serving.question import MOST_CHARACTERS, MOST_SAMPLES, MOST_TOP, Question
from serving.result import ROW, Place, strongest_parts

FOLDER = Path(__file__).parent
SCRIPT = (FOLDER / "script.js").read_text() + SIFT
COLUMNS = ROW["properties"].keys()
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

    def answer(self, sides: Sequence["Side"]) -> str:
        """The page of a question, whose form has its fields.

        Args:
            sides: the question and, if there is one, the question beside it.
        """
        own = sides[0]
        problem = f"The question has no answer: {own.progress.error}" if own.progress.error else ""
        shown = [self._shown(side, *side.answer) for side in sides if side.answer]
        return self._render(asdict(own.question), problem, key=own.key, progress=own.progress, sides=shown)

    def _shown(self, side: "Side", beside: Mapping[str, Any], table: pa.Table) -> dict[str, Any]:
        """What the page shows of one answer."""
        small = beside["resolution"] < PIXELATED_BELOW
        unpictured = frozenset(beside.get("unpictured", ()))
        tops = rankings(table, f"/questions/{side.key}/originals", small, strongest_parts(beside), unpictured)
        return {
            "key": side.key,
            "question": side.question,
            "small": small,
            "rankings": {method: ends for (method, form), ends in tops.items() if form == "damped"},
            "comparisons": list(compared(beside, tops)),
            "through": {
                t["method"]: {**t, "through": t["parts"]} for t in beside.get("through", []) if t["form"] == "damped"
            },
            "seconds": sum(beside["seconds"].values()),
            **{name: beside[name] for name in ("words", "without", "ranked", "drawn")},
        }

    def _render(self, values: Mapping[str, Any], problem: str, **content: Any) -> str:
        empty = {"key": "", "progress": None, "sides": []}
        return self._template.render({**self._constant, **empty, **content, "values": values, "problem": problem})


@dataclass(frozen=True)
class Side:
    """A question on a page.

    Attributes:
        key: its id.
        question, progress: what was asked, and how far it is.
        answer: what is shown beside the table, and the table; None before the question is done.
    """

    key: str
    question: Question
    progress: Progress
    answer: tuple[dict[str, Any], pa.Table] | None = None


Rankings = dict[tuple[str, str], dict[str, list[Thumb]]]
"""By method and form, the samples at each end."""


def rankings(
    table: pa.Table,
    originals: str,
    small: bool,
    parts: Mapping[Place, Sequence[Mapping[str, Any]]],
    unpictured: Collection[str],
) -> Rankings:
    """The samples of each ranking.

    Args:
        table: the answer.
        originals: the address below which the originals are.
        small: whether pictures are enlarged with sharp edges.
        parts: of each score, the parts of the network in which it is largest.
        unpictured: ids of samples that have no picture, because the data set holds latents.
    """
    tops = Rankings()
    for row in table.to_pylist():
        thumbs = tops.setdefault((row["method"], row["form"]), {"top": [], "bottom": []})
        through = parts.get((row["method"], row["form"], row["sample_id"]), ())
        thumb = _thumb(row, originals, small, tuple(Through(**part) for part in through))
        if thumb.sample_id in unpictured:
            thumb = replace(thumb, file="", original="")
        thumbs[row["end"]].append(thumb)
    return tops


def compared(
    beside: Mapping[str, Any], tops: Rankings
) -> Iterator[tuple[Overlap, tuple[Thumb, ...], tuple[Thumb, ...]]]:
    """Each comparison of two rankings, with the samples that one of them alone has."""
    shown = {f"{method}, {form}": ends["top"] for (method, form), ends in tops.items()}
    shown |= {method: ends["top"] for (method, form), ends in tops.items() if form == "damped"}
    for overlap in (Overlap(**fields) for fields in beside.get("comparisons", [])):
        first, second = (
            tuple(thumb for thumb in shown.get(name, ()) if thumb.sample_id in samples)
            for name, samples in ((overlap.first, overlap.only_first), (overlap.second, overlap.only_second))
        )
        yield overlap, first, second


def _thumb(row: Mapping[str, Any], originals: str, small: bool, through: tuple[Through, ...]) -> Thumb:
    """One sample of a ranking, with the addresses of its pictures."""
    address = quote(row["sample_id"], safe="")
    interval = tuple(row[name] for name in INTERVALS)
    return Thumb(
        sample_id=row["sample_id"],
        caption=row["caption"],
        score=row["score"],
        percentile=row["percentile"],
        rank=row["rank"],
        png=b"",
        labels={name: value for name, value in row.items() if name not in COLUMNS and value is not None},
        file=f"/samples/{address}/thumbnail",
        original=f"{originals}/{address}",
        small=small,
        origin=f"{row['source']}, row {row['row']}",
        through=through,
        interval=() if None in interval else interval,
    )


def sample_places(table: bytes) -> dict[str, tuple[str, int]]:
    """By id, the source and the row of each sample of an answer, whose Parquet file this is."""
    rows = read_parquet(table).select(["sample_id", "source", "row"]).to_pylist()
    return {row["sample_id"]: (row["source"], row["row"]) for row in rows}
