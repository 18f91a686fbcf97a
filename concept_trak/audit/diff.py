"""Compare two audits: the samples that entered, left or moved in the top, the share of new data, and query drift.

Only questions that both audits have are compared: the same method, and a concept with the same name and settings. A
shard's name has the version of its file, so samples of a shard that both audits planned are the same data. If a file
was rewritten, each of its samples is compared: whether the earlier audit has a feature under its id, and whether both
features agree.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from concept_trak import UserError
from concept_trak.audit.retrieval_ranks import FORMS
from concept_trak.store.identity import FeatureSet, setting_differences
from concept_trak.store.lookup import agree, read_features, shard_finder, shards_holding
from concept_trak.store.manifest import (
    Audit,
    feature_sets,
    finished_manifest,
    read_plan,
    read_settings,
    read_table,
    recency,
    write_table,
)
from concept_trak.store.queries import read_query
from concept_trak.store.store import Store
from concept_trak.store.summaries import summarize_audits
from concept_trak.store.tables import from_rows

Row = Mapping[str, Any]
REMOVED = "removed"


@dataclass(frozen=True)
class Move:
    """One sample in the top before, after, or both; a rank is None if the sample is not in that top."""

    sample_id: str
    change: str
    """entered, left or stayed."""
    rank_before: int | None
    rank_after: int | None
    score_before: float | None
    score_after: float | None
    data: str
    """`same`, `changed`, `new` in the later audit, or `removed` from it. See `novelty`."""
    caption: str


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """The cosine of two features; None if one is zero."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else None


def moves(before: Sequence[Row], after: Sequence[Row], data: Mapping[str, str]) -> Iterator[Move]:
    """The moves between two tops (rows of `top.parquet`): the later top in its order, then the samples that left.

    `data` has `same`, `changed`, `new` or `removed` for every sample of either top.
    """
    old, new = ({row["sample_id"]: row for row in top} for top in (before, after))
    for sample, row in new.items():
        was = old.get(sample, {})
        yield Move(
            sample_id=sample,
            change="stayed" if was else "entered",
            rank_before=was.get("rank"),
            rank_after=row["rank"],
            score_before=was.get("score"),
            score_after=row["score"],
            data=data[sample],
            caption=row["caption"],
        )
    for sample, row in old.items():
        if sample not in new:
            yield Move(
                sample_id=sample,
                change="left",
                rank_before=row["rank"],
                rank_after=None,
                score_before=row["score"],
                score_after=None,
                data=data[sample],
                caption=row["caption"],
            )


@dataclass(frozen=True)
class Difference:
    """One concept, method and form: the moves of its top, the later one's order first."""

    concept: str
    method: str
    form: str
    moves: tuple[Move, ...]
    cosine: float | None
    """The cosine between both phi_q; None if they belong to different feature sets or one is zero."""

    def count(self, change: str) -> int:
        return sum(move.change == change for move in self.moves)

    def share(self, data: str) -> float:
        """The share of the later top that is `data` (same, changed or new)."""
        matches = [move.data == data for move in self.moves if move.rank_after is not None]
        return sum(matches) / len(matches) if matches else 0.0


MOVE_KINDS = {"concept": "string", "method": "string", "form": "string", "sample_id": "string", "change": "string",
              "rank_before": "int32", "rank_after": "int32", "score_before": "float32", "score_after": "float32",
              "data": "string", "caption": "string"}  # fmt: skip
SUMMARY_KINDS = {"concept": "string", "method": "string", "form": "string", "entered": "int64", "left": "int64",
                 "stayed": "int64", "new_share": "float64", "changed_share": "float64",
                 "query_cosine": "float64"}  # fmt: skip


def compare(before: Audit, after: Audit) -> list[Difference]:
    """The differences of every question that both audits have. The later audit needs its tables, but no manifest.

    Raises:
        UserError: both are the same audit, the earlier is missing or unfinished, or they share no question.
    """
    if before.id == after.id:
        raise UserError(f"before={before.id} and after={after.id} are the same audit; expected two")
    finished_manifest(before)
    common_questions = common(before, after.id, read_settings(after))
    tops = [read_table(audit, "top.parquet").to_pylist() for audit in (before, after)]
    differences = []
    for method in dict.fromkeys(method for _, method in common_questions):
        old, new = _side(before, method), _side(after, method)
        data = _data([[row for row in top if row["method"] == method] for top in tops], after.store, old, new)
        for concept, form in product([c for c, m in common_questions if m == method], FORMS):
            moved = tuple(moves(*(_top(top, concept, method, form) for top in tops), data=data))
            drift = _drift(before, after, method, concept) if old.features == new.features else None
            differences.append(Difference(concept=concept, method=method, form=form, moves=moved, cosine=drift))
    order = {pair: i for i, pair in enumerate(common_questions)}
    return sorted(differences, key=lambda d: order[d.concept, d.method])


@dataclass(frozen=True)
class ComparedAudit:
    """One method's features in one audit: their feature set, and the plan by which they were computed."""

    features: FeatureSet
    plan: Sequence[Row]

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(row["shard"] for row in self.plan)


def _data(tops: Sequence[Sequence[Row]], store: Store, before: ComparedAudit, after: ComparedAudit) -> dict[str, str]:
    """`same`, `changed`, `new` or `removed` for every sample of both tops of a method."""
    state = novelty(store, tops[1], before, after)
    gone = novelty(store, [row for row in tops[0] if row["sample_id"] not in state], after, before)
    return state | {sample: REMOVED if what == NEW else what for sample, what in gone.items()}


def _side(audit: Audit, method: str) -> ComparedAudit:
    return ComparedAudit(feature_sets(audit)[method], read_plan(audit))


def _drift(before: Audit, after: Audit, method: str, concept: str) -> float | None:
    return cosine(*(_phi(audit, method, concept) for audit in (before, after)))


def difference_files(before: Audit) -> tuple[str, str]:
    """The moves and the summary, below the later audit."""
    return f"diff-{before.id}.parquet", f"diff-{before.id}.summary.parquet"


def write_differences(before: Audit, after: Audit, differences: Sequence[Difference]) -> list[str]:
    """Put both tables into the later audit's folder; returns their names. They are removed together with that audit.

    The manifest lists them only if the later audit has `since`.

    Raises:
        UserError: the files exist with other numbers, from an earlier audit of the same name.
    """
    questions = [{"concept": d.concept, "method": d.method, "form": d.form} for d in differences]
    rows = [{**a, **asdict(move)} for a, d in zip(questions, differences, strict=True) for move in d.moves]
    sums = [{**a, **summary(d)} for a, d in zip(questions, differences, strict=True)]
    tables = zip(difference_files(before), (from_rows(MOVE_KINDS, rows), from_rows(SUMMARY_KINDS, sums)), strict=True)
    for name, table in tables:
        if not write_table(after, name, table) and not read_table(after, name).equals(table):
            raise UserError(f"{after.name(name)} holds another comparison: {before.id} was made anew; remove the file")
    return [after.name(name) for name in difference_files(before)]


def summary(d: Difference) -> dict[str, Any]:
    """One difference in numbers."""
    shares = {"new_share": d.share(NEW), "changed_share": d.share(CHANGED)}
    return {**{change: d.count(change) for change in ("entered", "left", "stayed")}, **shares, "query_cosine": d.cosine}


def _top(rows: Sequence[Row], concept: str, method: str, form: str) -> list[Row]:
    key = (concept, method, form, "top")
    return [row for row in rows if (row["concept"], row["method"], row["form"], row["end"]) == key]


def _phi(audit: Audit, method: str, concept: str) -> np.ndarray:
    return read_query(audit, method, concept).phi.astype(np.float64)


SAME, CHANGED, NEW = "same", "changed", "new"


def novelty(store: Store, rows: Iterable[Row], before: ComparedAudit, after: ComparedAudit) -> dict[str, str]:
    """For samples of the later side (`sample_id`, `source`, `row`): same, changed, or new.

    A sample of a rewritten file is `changed` if its feature differs, or if the two audits' features cannot be compared
    (another model or other settings of the method); it is `new` if the earlier audit has no feature under its id. Any
    other sample is `same` if the earlier audit had its file, else `new`.
    """
    shard_of = shard_finder(after.plan)
    place = {row["sample_id"]: shard_of(row) for row in rows}
    shards_before, shards_after = before.shards, after.shards
    doubtful = {sample: shard for sample, shard in place.items() if shard not in shards_before}
    left = [shard["shard"] for shard in before.plan if shard["shard"] not in shards_after]
    old = shards_holding(store, before.features, left, doubtful.keys()) if doubtful else {}
    novelty = dict.fromkeys(place, SAME) | dict.fromkeys(doubtful, NEW) | dict.fromkeys(old, CHANGED)
    if before.features == after.features and old:
        ours, theirs = (
            read_features(store, before.features, places) for places in ({i: doubtful[i] for i in old}, old)
        )
        novelty |= {i: SAME for i in old if agree(ours[i], theirs[i])}
    return novelty


UNASKED = ("truth",)  # grades the answer and is no part of the question


def common(before: Audit, after: str, new: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(concept, method) that both audits have, in the later audit's order; UserError if there is none.

    `after` is the name of the later audit, and `new` are its settings in the form of `audit.yaml`.
    """
    old = read_settings(before)
    questions = [
        {c["name"]: {k: v for k, v in c.items() if k not in UNASKED} for c in s["concepts"]} for s in (old, new)
    ]
    concepts = [n for n, c in questions[1].items() if n in questions[0] and not setting_differences(c, questions[0][n])]
    methods = [method for method in new["methods"] if method in old["methods"]]
    if not concepts or not methods:
        sides = (f"{name}: {', '.join(s['methods'])} about {', '.join(q)}"
                 for name, s, q in zip((before.id, after), (old, new), questions, strict=True))  # fmt: skip
        raise UserError(
            f"the audits have no question in common ({'; '.join(sides)}); expected a method, and a concept of the same "
            "name, prompts, samples and seed, in both"
        )
    return list(product(concepts, methods))


def require_comparable(audit: Audit, since: str, new: Mapping[str, Any]) -> None:
    """Check, before an audit with the settings `new` begins, that it can be compared with the one that `since` names.

    Raises:
        UserError: that audit is the audit itself, is missing or unfinished, or has no question in common.
    """
    if since in ("", "latest"):
        return
    if since == audit.id:
        raise UserError(f"since={since} is this audit itself; expected an earlier one, or latest")
    finished_manifest(Audit(audit.store, since))
    common(Audit(audit.store, since), audit.id, new)


def earlier(audit: Audit, since: str) -> Audit | None:
    """The audit to compare with: the one that `since` names, or for `latest` the newest finished one that has a
    question in common; None if there is none, or `since` is empty."""
    if since != "latest":
        return Audit(audit.store, since) if since else None
    names = [name.rstrip("/") for name in audit.store.children("audits") if name.endswith("/")]
    summaries = summarize_audits(audit.store, (name for name in names if name != audit.id))
    done = [(recency(summary.finished), summary.audit) for summary in summaries]
    for _, name in sorted(done, reverse=True):
        with suppress(ValueError, FileNotFoundError):  # nothing in common; or gc is removing it
            common(Audit(audit.store, name), audit.id, read_settings(audit))
            return Audit(audit.store, name)
    return None
