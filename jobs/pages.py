"""From what an audit found to what its page shows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from concept_trak.concept import Concept
from concept_trak.gallery import Seen
from concept_trak.query import Answer
from concept_trak.reduction import Solution
from concept_trak.report.page import Facts, Page, Ranking, Section, Thumb
from concept_trak.results import FORMS, Tally, column, percentile, rejects_by_reason, shows
from concept_trak.scoring import SPAN, Entry
from concept_trak.store.records import Record
from jobs.configure import plain_values
from jobs.run import Run


@dataclass(frozen=True)
class Found:
    """What the stages of a run found: by method, or by (method, concept); `measures` by concept, then column."""

    records: dict[str, list[Record]]
    answers: dict[tuple[str, str], Answer]
    solved: dict[str, Solution]
    tally: Tally
    seen: dict[str, Seen]
    measures: dict[str, dict[str, dict[str, float]]]

    @property
    def parts(self) -> list[Record]:
        """The records of every method, one list."""
        return [record for records in self.records.values() for record in records]


def page(run: Run, found: Found) -> Page:
    """The page of a finished run."""
    p, config = run.prepared, run.prepared.config
    return Page(
        audit=p.audit.id,
        finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        model=config.model.path,
        data=config.data.uri,
        parameters=p.parameters,
        samples=p.samples,
        sources=p.sources,
        sections=tuple(_section(run, found, concept) for concept in config.concepts),
        facts=tuple(facts(run, found, method) for method in config.methods),
        rejects=rejects_by_reason(found.parts),
        settings=dict(_flat(plain_values(config))),
    )


def facts(run: Run, found: Found, method: str) -> Facts:
    """One method: its row in words, and what it cost."""
    row, parts, solved = run.prepared.config.methods[method], found.records[method], found.solved[method]
    return Facts(
        method=method,
        train=f"{row.train.trajectory} · {row.train.direction}",
        query=f"{row.query.trajectory} · {row.query.direction}",
        unit={"all": "over all parameters", "layer": "layer by layer"}[row.over] if row.unit else "no",
        fingerprint=run.prepared.work.fingerprints[method],
        evaluations=row.train.evaluations,
        seconds=float(sum(r.seconds for r in parts)),
        samples=sum(r.rows for r in parts),
        computed=run.computed[method],
        rejected=sum(r.rejected for r in parts),
        features=run.prepared.settings[method]["projector"]["dim"],
        trace=solved.trace,
        lam=solved.lam,
    )


def _section(run: Run, found: Found, concept: Concept) -> Section:
    methods = run.prepared.config.methods
    rankings = tuple(_ranking(run, found, concept, method, form) for method in methods for form in FORMS)
    pictures = found.answers[next(iter(methods)), concept.name].pictures
    return Section(concept.name, concept.text, concept.without, concept.scope, dict(concept.truth), pictures, rankings)


def _ranking(run: Run, found: Found, concept: Concept, method: str, form: str) -> Ranking:
    config, key = run.prepared.config, (method, column(concept.name, form))
    ends, solved = found.tally.ends[key], found.solved[method]
    spread = solved.spread[config.concepts.index(concept)][FORMS.index(form)]
    top, bottom = (
        tuple(_thumb(found, concept, entry, rank, end, solved.count) for rank, entry in enumerate(entries, 1))
        for end, entries in (("top", ends.top[: config.shown]), ("bottom", ends.bottom[: config.shown]))
    )
    histogram = tuple(int(count) for count in found.tally.histogram[key])
    metrics = found.measures.get(concept.name, {}).get(column(method, form), {})
    return Ranking(method, form, top, bottom, histogram, SPAN * spread, metrics)


def _thumb(found: Found, concept: Concept, entry: Entry, rank: int, end: str, count: int) -> Thumb:
    score, sample, _ = entry
    seen = found.seen[sample]
    relevant = shows(concept, seen.labels) if concept.truth else None
    share = percentile(rank, end, count)
    return Thumb(sample, seen.caption, score, share, rank, seen.png, seen.labels, relevant)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, (list, dict)) else str(value)
