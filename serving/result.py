"""The result of a question: what is kept beside its table, and the JSON of both with its schema."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from concept_trak.report.audit_page import Section

TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
Schema = dict[str, Any]


def _described(schema: Schema, description: str) -> Schema:
    return schema | {"description": description}


def _maybe(schema: Schema, description: str) -> Schema:
    return {"type": [schema["type"], "null"], "description": description}


def _list(items: Schema, description: str) -> Schema:
    return {"type": "array", "items": items, "description": description}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


FORM = {"enum": ["damped", "plain"]}
PART = _object(
    part=_described(TEXT, "a part of the network, such as up_blocks.1"),
    score=_described(NUMBER, "its summand of the score"),
    share=_described(NUMBER, "of the score; negative where the signs differ"),
)
ROW = _object(
    concept=TEXT,
    method=TEXT,
    form=FORM,
    end={"enum": ["top", "bottom"]},
    rank=_described(WHOLE, "from 1, the most extreme first"),
    sample_id=TEXT,
    score=_maybe(NUMBER, "null if it is not finite"),
    percentile=_described(NUMBER, "100 for the best sample"),
    low=_maybe(NUMBER, "the 90 % interval of the score"),
    high=_maybe(NUMBER, "the 90 % interval of the score"),
    rank_low=_maybe(WHOLE, "the 90 % interval of the rank"),
    rank_high=_maybe(WHOLE, "the 90 % interval of the rank"),
    caption=TEXT,
    source=TEXT,
    row=WHOLE,
    duplicate_of=_described(TEXT, "the better-ranked sample that is the same image to the model"),
) | {"additionalProperties": _maybe(TEXT, "a label of the data set")}
THROUGH = _list(PART, "the parts of the network with the largest summands; empty if the features mix layers")
COMPARISON = _object(
    first=_described(TEXT, "a method, or a method and a form: `fit_trak, plain`"),
    second=TEXT,
    shared=_described(WHOLE, "how many of the first `of` samples both have"),
    of=WHOLE,
    correlation=_maybe(NUMBER, "Spearman's, of the ranks of the `sampled` samples; null if it is not known"),
    sampled=_described(WHOLE, "about 1000 samples of the data set, chosen by their ids; all of a smaller one"),
    only_first=_list(TEXT, "ids of the samples that `first` alone has among its first `of`, the best first"),
    only_second=_list(TEXT, "the same of `second`"),
)
RESULT = _object(
    rows=_list(ROW | {"properties": {**ROW["properties"], "through": THROUGH}}, "the table, by method, form and end"),
    seconds=_described({"type": "object", "additionalProperties": NUMBER}, "by step"),
    comparisons=_list(COMPARISON, "of both forms of each method, and of each two methods"),
    through=_list(
        _object(method=TEXT, form=FORM, parts=_list(PART, "every part of the network, in its order")),
        "the scores of the best samples together; empty if the features mix layers",
    ),
)
"""The schema of `json_result`."""


def beside_table(section: Section) -> dict[str, Any]:
    """What is kept of an answer beside its table.

    Args:
        section: of the page that an audit with this concept would have.
    """
    rankings = [ranking for ranking in section.rankings if ranking.through]
    return {
        "words": {words.method: {"text": words.text, "stands_out": words.clear} for words in section.answers},
        "comparisons": [asdict(overlap) for overlap in section.overlaps],
        "through": [{"method": r.method, "form": r.form, "parts": [asdict(p) for p in r.through]} for r in rankings],
        "strongest": [
            {"method": r.method, "form": r.form, "samples": {
                thumb.sample_id: [asdict(part) for part in thumb.through] for thumb in (*r.top, *r.bottom)
            }}
            for r in rankings
        ],
    }  # fmt: skip


def json_result(beside: Mapping[str, Any], table: pa.Table) -> dict[str, Any]:
    """The result of a question in JSON, which knows neither infinity nor NaN.

    Args:
        beside: what is kept beside the table. Answers of earlier versions have neither comparisons nor layers.
        table: the table.
    """
    parts = strongest_parts(beside)
    rows = [dict(_plain(row)) | {"through": parts.get(_place(row), [])} for row in table.to_pylist()]
    return {
        "rows": rows,
        "seconds": beside["seconds"],
        "comparisons": beside.get("comparisons", []),
        "through": beside.get("through", []),
    }


Place = tuple[str, str, str]
"""(method, form, sample): one score."""


def strongest_parts(beside: Mapping[str, Any]) -> dict[Place, list[dict[str, Any]]]:
    """The parts of the network in which each score is largest."""
    return {
        (ranking["method"], ranking["form"], sample): parts
        for ranking in beside.get("strongest", [])
        for sample, parts in ranking["samples"].items()
    }


def _place(row: Mapping[str, Any]) -> Place:
    return row["method"], row["form"], row["sample_id"]


def _plain(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        yield name, None if isinstance(value, float) and not math.isfinite(value) else value
