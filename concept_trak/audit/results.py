"""The results of an audit: the tally of scores, the table of tops, the retrieval metrics."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.ranking import BINS, Entry, TopK
from concept_trak.audit.retrieval_ranks import FORMS, column
from concept_trak.audit.score import ScoreResult
from concept_trak.audit.score_spread import Certainty, QuerySpread, certainty
from concept_trak.audit.shown_samples import ShownSample
from concept_trak.config import AuditConfig
from concept_trak.store.records import Record

Key = tuple[str, str]  # method, column


@dataclass
class Tally:
    """The ends and the histogram of every column of scores, added up shard by shard in any order."""

    m: int
    ends: dict[Key, TopK] = field(default_factory=dict)
    histogram: dict[Key, np.ndarray] = field(default_factory=dict)
    spreads: dict[Key, QuerySpread] = field(default_factory=dict)
    """Of the damped columns whose query's samples were divided into groups."""
    carriers: dict[Key, int] = field(default_factory=dict)
    """By method and concept, how many samples show it, where rankings are graded."""

    sample: dict[Key, dict[str, float]] = field(default_factory=dict)
    """The scores of a sample of the training set, the same for every method; by sample id."""

    def add(self, scored: ScoreResult) -> None:
        for column_number, (name, ends) in enumerate(scored.columns.items()):
            key = (scored.method, name)
            own = {sample: scores[column_number] for sample, scores in scored.sample.items()}
            self.sample.setdefault(key, {}).update(own)
            self.ends[key] = self.ends.get(key, TopK(self.m)) + TopK(self.m, ends.top, ends.bottom)
            self.histogram[key] = self.histogram.get(key, np.zeros(BINS, np.int64)) + np.array(ends.histogram)
            if ends.spread is not None:
                self._add_spread(key, ends.spread)
        for concept, count in scored.carriers.items():
            self.carriers[scored.method, concept] = self.carriers.get((scored.method, concept), 0) + count

    def _add_spread(self, key: Key, spread: QuerySpread) -> None:
        samples = {entry[1] for entry in self.ends[key].top + self.ends[key].bottom}
        earlier = self.spreads.get(key)
        self.spreads[key] = spread if earlier is None else earlier.merged(spread, samples)

    def entries(self) -> Iterable[Entry]:
        for ends in self.ends.values():
            yield from ends.top
            yield from ends.bottom


def percentile(rank: int, end: str, count: int) -> float:
    """Share of the samples with no higher score, in percent: 100 for the best."""
    place = rank if end == "top" else count - rank + 1
    return 100 * (count - place + 1) / count


INTERVALS = {"low": "float32", "high": "float32", "rank_low": "int64", "rank_high": "int64"}
"""The columns of the 90 % intervals of a damped score and of its rank, which are null where no spread is known."""


def intervals(tally: Tally, key: Key, end: str, rank: int) -> dict[str, float | int | None]:
    """The intervals of the score with a rank at an end of a column; the ranks count from that end."""
    spread = tally.spreads.get(key)
    if spread is None:
        return dict.fromkeys(INTERVALS)
    sign, entries = (1, tally.ends[key].top) if end == "top" else (-1, tally.ends[key].bottom)
    score, sample, _ = entries[rank - 1]
    low, high = spread.interval(sample, score)
    towards = (low, high) if end == "top" else (-high, -low)
    counts = tally.histogram[key].tolist()[::sign]
    first, last = spread.ranks(towards, rank, [sign * entry[0] for entry in entries], counts)
    return dict(zip(INTERVALS, (low, high, first, last), strict=True))


def certainties(config: AuditConfig, tally: Tally, concept: Concept) -> dict[str, Certainty]:
    """By method, how far the top about a concept can be relied on, where the query's samples were divided.

    The top are the samples that the page shows; all that are ranked if it shows none.
    """
    of = config.shown or config.top
    return {
        method: certainty(tally.spreads[method, concept.name], [e[0] for e in tally.ends[method, concept.name].top], of)
        for method in config.methods
        if (method, concept.name) in tally.spreads
    }


def top_rows(
    config: AuditConfig, tally: Tally, seen: dict[str, ShownSample], counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """One row for each concept, method, form, end and rank: the best and worst samples with their sources and rows.

    `duplicate_of` is the better-ranked sample (at the bottom: of a lower score) that is the same image to the model.
    """
    for method, concept, form in product(config.methods, config.concepts, FORMS):
        key = method, column(concept.name, form)
        ends = tally.ends[key]
        for end, entries in (("top", ends.top), ("bottom", ends.bottom)):
            first: dict[str, str] = {}
            for rank, (score, sample, _) in enumerate(entries, 1):
                s = seen[sample]
                question = {"concept": concept.name, "method": method, "form": form, "end": end, "rank": rank}
                answer = {"sample_id": sample, "score": score, "percentile": percentile(rank, end, counts[method])}
                answer |= intervals(tally, key, end, rank)
                same = first.setdefault(s.content or sample, sample)
                place = {"caption": s.caption, "source": s.source, "row": s.row}
                yield {**question, **answer, **place, "duplicate_of": "" if same == sample else same, **s.labels}


def top_kinds(config: AuditConfig) -> dict[str, str]:
    """The columns of `top.parquet`."""
    question = {"concept": "string", "method": "string", "form": "string", "end": "string", "rank": "int32"}
    answer = {"sample_id": "string", "score": "float32", "percentile": "float64"} | INTERVALS
    place = {"caption": "string", "source": "string", "row": "int64", "duplicate_of": "string"}
    return {**question, **answer, **place, **dict.fromkeys(config.data.label_columns, "string")}


def rejects_by_reason(records: Iterable[Record]) -> dict[str, int]:
    """The number of rejected samples by reason."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.rejects_by_reason)
    return dict(sorted(total.items()))


def shows(concept: Concept, labels: dict[str, str]) -> bool:
    """Whether a sample's labels match the concept's truth."""
    return all(labels.get(name) == value for name, value in concept.truth.items())
