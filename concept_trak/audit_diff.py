"""Two finished audits compared: who entered and left the top, who moved, how much of the top is new data, and how far
the query's feature drifted.

Only questions that both audits asked alike are compared: the same method, and a concept of the same name and settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import yaml

from concept_trak.layout import query_file
from concept_trak.results import FORMS
from concept_trak.store.manifest import Audit, manifest, read_plan, read_table, write_table
from concept_trak.store.tables import from_rows

Row = Mapping[str, Any]
UNASKED = ("truth",)  # grades the answer and is no part of the question


@dataclass(frozen=True)
class Move:
    """One sample that stands in the top before, after, or in both; None where it does not stand."""

    sample_id: str
    change: str
    """entered, left or stayed."""
    rank_before: int | None
    rank_after: int | None
    score_before: float | None
    score_after: float | None
    new: bool
    """Whether its shard (source, version, rows) was not in the earlier audit: added or changed data."""
    caption: str


@dataclass(frozen=True)
class Difference:
    """One concept, method and form: the moves of its top, the later one's order first."""

    concept: str
    method: str
    form: str
    moves: tuple[Move, ...]
    cosine: float | None
    """Between both phi_q; None where the two live in different feature sets or one is zero."""

    def count(self, change: str) -> int:
        return sum(move.change == change for move in self.moves)

    @property
    def new_share(self) -> float:
        """The share of the later top that is new data."""
        standing = [move.new for move in self.moves if move.rank_after is not None]
        return sum(standing) / len(standing) if standing else 0.0


MOVE_KINDS = {"concept": "string", "method": "string", "form": "string", "sample_id": "string", "change": "string",
              "rank_before": "int32", "rank_after": "int32", "score_before": "float32", "score_after": "float32",
              "new": "bool", "caption": "string"}  # fmt: skip
SUMMARY_KINDS = {"concept": "string", "method": "string", "form": "string", "entered": "int64", "left": "int64",
                 "stayed": "int64", "new_share": "float64", "query_cosine": "float64"}  # fmt: skip


def compare(before: Audit, after: Audit) -> list[Difference]:
    """Every question that both audits answered.

    Raises:
        ValueError: it is twice the same audit, one is missing or unfinished, or they asked nothing in common.
    """
    if before.id == after.id:
        raise ValueError(f"before={before.id} and after={after.id} are the same audit; expected two")
    prints = [finished(audit)["settings"]["fingerprints"] for audit in (before, after)]
    asked = common(before, after)
    tops = [read_table(audit, "top.parquet").to_pylist() for audit in (before, after)]
    known, plan = {row["shard"] for row in read_plan(before)}, read_plan(after)
    found = []
    for (concept, method), form in product(asked, FORMS):
        old, new = (_top(top, concept, method, form) for top in tops)
        same_space = prints[0][method] == prints[1][method]
        drift = cosine(*(_phi(audit, method, concept) for audit in (before, after))) if same_space else None
        found.append(Difference(concept, method, form, tuple(moves(old, new, known, plan)), drift))
    return found


def moves(before: Sequence[Row], after: Sequence[Row], known: set[str], plan: Sequence[Row]) -> Iterator[Move]:
    """The moves between two tops (rows of `top.parquet`): the later one in order, then who left it.

    `known` are the shards of the earlier audit, `plan` the plan of the later one.
    """
    old, new = ({row["sample_id"]: row for row in top} for top in (before, after))
    for sample, row in new.items():
        was = old.get(sample, {})
        change = "stayed" if was else "entered"
        ranks, scores = (was.get("rank"), row["rank"]), (was.get("score"), row["score"])
        yield Move(sample, change, *ranks, *scores, shard_of(row, plan) not in known, row["caption"])
    for sample, row in old.items():
        if sample not in new:
            yield Move(sample, "left", row["rank"], None, row["score"], None, False, row["caption"])


def shard_of(row: Row, plan: Sequence[Row]) -> str:
    """The shard of a plan that holds a row of a source."""
    for shard in plan:
        if shard["source"] == row["source"] and 0 <= row["row"] - shard["first_row"] < shard["rows"]:
            return shard["shard"]
    raise AssertionError(f"{row['source']} row {row['row']} is in the top and in no shard of the plan")


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """The cosine of two features; None where one is zero."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else None


def common(before: Audit, after: Audit) -> list[tuple[str, str]]:
    """(concept, method) that both asked alike, in the later audit's order; ValueError if there is none."""
    old, new = (yaml.safe_load(audit.store.read(audit.name("audit.yaml"))) for audit in (before, after))
    questions = [
        {c["name"]: {k: v for k, v in c.items() if k not in UNASKED} for c in s["concepts"]} for s in (old, new)
    ]
    concepts = [name for name, asked in questions[1].items() if questions[0].get(name) == asked]
    methods = [method for method in new["methods"] if method in old["methods"]]
    if not concepts or not methods:
        sides = (f"{a.id}: {', '.join(s['methods'])} about {', '.join(q)}"
                 for a, s, q in zip((before, after), (old, new), questions, strict=True))  # fmt: skip
        raise ValueError(
            f"the audits have no question in common ({'; '.join(sides)}); expected a method, and a concept of the same "
            "name, prompts, samples and seed, in both"
        )
    return list(product(concepts, methods))


def finished(audit: Audit) -> dict[str, Any]:
    """The manifest of an audit; ValueError if there is none."""
    done = manifest(audit)
    if done is None and not audit.store.names(f"audits/{audit.id}"):
        raise ValueError(f"{audit.store.uri} has no audit {audit.id!r}; `python -m jobs.status` lists those there are")
    if done is None:
        raise ValueError(f"audit {audit.id} is not finished; run its command again, then compare")
    return done


def write(before: Audit, after: Audit, found: Sequence[Difference]) -> list[str]:
    """Put both tables into the later audit's folder, with which they are removed; returns their names.

    The manifest does not list them: they are made from finished audits, and can be made again.

    Raises:
        ValueError: other numbers stand there, from an earlier audit of the same name.
    """
    asked = [{"concept": d.concept, "method": d.method, "form": d.form} for d in found]
    rows = [{**a, **asdict(move)} for a, d in zip(asked, found, strict=True) for move in d.moves]
    sums = [{**a, **{c: d.count(c) for c in ("entered", "left", "stayed")}, "new_share": d.new_share,
             "query_cosine": d.cosine} for a, d in zip(asked, found, strict=True)]  # fmt: skip
    tables = {f"diff-{before.id}.parquet": from_rows(MOVE_KINDS, rows),
              f"diff-{before.id}.summary.parquet": from_rows(SUMMARY_KINDS, sums)}  # fmt: skip
    for name, table in tables.items():
        if not write_table(after, name, table) and not read_table(after, name).equals(table):
            raise ValueError(f"{after.name(name)} holds another comparison: {before.id} was made anew; remove the file")
    return [after.name(name) for name in tables]


def _top(rows: Sequence[Row], concept: str, method: str, form: str) -> list[Row]:
    wanted = (concept, method, form, "top")
    return [row for row in rows if (row["concept"], row["method"], row["form"], row["end"]) == wanted]


def _phi(audit: Audit, method: str, concept: str) -> np.ndarray:
    (row,) = read_table(audit, query_file(method, concept)).to_pylist()
    return np.asarray(row["phi"], np.float64)
