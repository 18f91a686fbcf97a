"""Scores summed by source, label and caption word, written as tables.

The score pass writes sums for each range of shards; one task for each method adds them up.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from concept_trak.audit.mapper import Attempt, Task
from concept_trak.audit.worker import StoreWorker
from concept_trak.config import AuditConfig
from concept_trak.data.columns import Annotation, caption_words
from concept_trak.data.shard import Shard
from concept_trak.store.manifest import groups_file, plain_column, read_table, sums_file, write_table
from concept_trak.store.tables import from_columns, from_rows

KINDS = {"source": ("source",), "label": ("label", "value"), "word": ("word",)}
Group = tuple[str, str, str]  # kind, the label's name or "", value
SHOWN, LEAST = 12, 5
"""How many of a kind the page shows, and how many samples a word needs to be among them: of one sample the mean is the
sample's own score."""


class Sums:
    """By group: the number of samples, and for each column of scores its sum, sum of squares and sum of positives."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self.by_group: dict[Group, Float[np.ndarray, " c_and_more"]] = {}

    def add(self, group: Group, sums: Float[np.ndarray, " _"]) -> None:
        """`sums`: samples, then sums, squares and positives of every column."""
        existing = self.by_group.get(group)
        self.by_group[group] = sums if existing is None else existing + sums

    def add_scores(self, values: Float[np.ndarray, "n c"], groups: Sequence[Iterable[Group]]) -> None:
        """Scores of n samples, each with the groups it belongs to."""
        members: dict[Group, list[int]] = {}
        for i, mine in enumerate(groups):
            for group in mine:
                members.setdefault(group, []).append(i)
        if not members:
            return
        order = np.concatenate([np.array(some) for some in members.values()])
        counts = np.array([len(some) for some in members.values()])
        some = values.astype(np.float64)[order]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        parts = [np.add.reduceat(x, starts) for x in (some, some * some, some.clip(min=0))]
        for group, sums in zip(members, np.concatenate([counts[:, None], *parts], axis=1), strict=True):
            self.add(group, sums)


def groups_of(sample: Annotation, shard: Shard) -> Iterator[Group]:
    """The groups of a sample: its source, its labels and its caption's words."""
    yield "source", "", shard.source
    yield from (("label", name, value) for name, value in sample.labels.items())
    yield from (("word", "", word) for word in caption_words(sample.caption))


def sums_table(sums: Sums) -> Any:
    """The sums as a table: kind, label, value, samples, and three columns of each column of scores."""
    groups, c = list(sums.by_group), len(sums.columns)
    numbers = np.array([sums.by_group[g] for g in groups]).reshape(len(groups), 1 + 3 * c)
    names = [f"{what}:{column}" for what in ("sum", "square", "positive") for column in sums.columns]
    kinds = {"kind": "string", "label": "string", "value": "string", "samples": "int64"} | dict.fromkeys(
        names, "float64"
    )
    keys = dict(zip(("kind", "label", "value"), zip(*groups, strict=True) if groups else ((), (), ()), strict=True))
    return from_columns(
        kinds,
        {**keys, "samples": numbers[:, 0].astype(np.int64), **dict(zip(names, numbers[:, 1:].T, strict=True))},
    )


@dataclass(frozen=True)
class AggregateTask(Task):
    """One method, and the first shard of each of its tables of sums, in plan order."""

    method: str
    tables: tuple[str, ...]

    @property
    def label(self) -> str:
        return self.method


@dataclass(frozen=True)
class GroupStatistics:
    """The scores of one group of samples, which have a source, a label or a caption word in common.

    Attributes:
        name: the source, `label = value`, or the word.
        samples: how many.
        mean: of their scores.
        share: of the sum of all positive scores, in [0, 1].
        errors: (mean - mean of all) sqrt(samples) / deviation of all: how many standard errors the group's mean is
            above that of all samples.
    """

    name: str
    samples: int
    mean: float
    share: float
    errors: float


@dataclass(frozen=True)
class AggregateResult:
    """The groups that the page shows for a method: by column of scores and kind, the best first."""

    method: str
    shown: dict[str, dict[str, tuple[GroupStatistics, ...]]]


class AggregateWorker(StoreWorker):
    """All sums of a method added, to `<method>/by_source.parquet`, `by_label.parquet` and `by_word.parquet`."""

    def __call__(self, item: AggregateTask, attempt: Attempt) -> AggregateResult:
        total = self._total(item)
        shown: dict[str, dict[str, tuple[GroupStatistics, ...]]] = {}
        for kind, named in KINDS.items():
            rows = [row for question in questions(self.work.config) for row in self._rows(item, total, kind, question)]
            write_table(self.audit, groups_file(item.method, kind), from_rows(_kinds(named), rows))
            for row in rows:
                shown_rows = shown.setdefault(row["column"], {}).setdefault(kind, ())
                if len(shown_rows) < SHOWN and (kind != "word" or row["samples"] >= LEAST):
                    shown[row["column"]][kind] = (*shown_rows, _statistics(row, named))
        return AggregateResult(item.method, shown)

    def _total(self, item: AggregateTask) -> Sums:
        total: Sums | None = None
        for first in item.tables:
            table = read_table(self.audit, sums_file(item.method, first))
            columns = [name.removeprefix("sum:") for name in table.column_names if name.startswith("sum:")]
            total = total or Sums(columns)
            keys = zip(*(table[name].to_pylist() for name in ("kind", "label", "value")), strict=True)
            numbers = np.stack([table[name].to_numpy() for name in table.column_names[3:]], axis=1)
            for group, row in zip(keys, numbers.astype(np.float64), strict=True):
                total.add(group, row)
        assert total is not None, "a method whose every sample was rejected has ended the run before"
        return total

    def _rows(self, item: AggregateTask, total: Sums, kind: str, question: Mapping[str, str]) -> list[dict[str, Any]]:
        """The groups of a kind for one question, ordered by how far their mean is above that of all samples."""
        j, c = total.columns.index(question["column"]), len(total.columns)
        sources = [sums for (k, _, _), sums in total.by_group.items() if k == "source"]  # every sample is in one
        n, summed, squares, positive = np.sum(sources, axis=0)[[0, 1 + j, 1 + c + j, 1 + 2 * c + j]]
        mean, deviation = summed / n, np.sqrt(max(0.0, squares / n - (summed / n) ** 2))
        rows = []
        for (k, label, value), sums in total.by_group.items():
            if k == kind:
                count, own = int(sums[0]), sums[1 + j] / sums[0]
                spread = np.sqrt(max(0.0, sums[1 + c + j] / count - own**2))
                above = {"share": sums[1 + 2 * c + j] / positive if positive else 0.0}
                errors = (own - mean) * np.sqrt(count) / deviation if deviation else 0.0
                named = dict(zip(KINDS[kind], (label, value) if kind == "label" else (value,), strict=True))
                figures = {"samples": count, "mean": own, "deviation": spread, "sum": sums[1 + j]}
                rows.append({**question, "method": item.method, **named, **figures, **above, "errors": errors})
        return sorted(rows, key=lambda r: (-r["errors"], [r[name] for name in KINDS[kind]]))


def questions(config: AuditConfig) -> Iterator[dict[str, str]]:
    """The concept and the form of each column of scores."""
    for concept in config.concepts:
        yield {"concept": concept.name, "form": "damped", "column": concept.name}
        yield {"concept": concept.name, "form": "plain", "column": plain_column(concept.name)}


def _kinds(named: Sequence[str]) -> dict[str, str]:
    keys = dict.fromkeys(("concept", "method", "form", *named), "string")
    return {**keys, "samples": "int64", **dict.fromkeys(("mean", "deviation", "sum", "share", "errors"), "float64")}


def _statistics(row: Mapping[str, Any], named: Sequence[str]) -> GroupStatistics:
    name = " = ".join(row[part] for part in named)
    return GroupStatistics(
        name=name,
        samples=row["samples"],
        mean=float(row["mean"]),
        share=float(row["share"]),
        errors=float(row["errors"]),
    )
