"""The end of an audit: tables, metrics, the page, last the manifest; and what a person sees on the terminal."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from concept_trak.concept import Concept
from concept_trak.gallery import Seen
from concept_trak.layout import gram_file, query_file, scores_file
from concept_trak.query import Answer
from concept_trak.reduction import Solution
from concept_trak.report.page import Facts, Page, Ranking, Section, Thumb
from concept_trak.report.render import render
from concept_trak.results import (
    FORMS,
    REJECT_KINDS,
    Tally,
    column,
    measured,
    percentile,
    reject_rows,
    rejects_by_reason,
    shows,
    top_kinds,
    top_rows,
)
from concept_trak.scoring import SPAN, Entry
from concept_trak.store.manifest import finish, read_table, write_bytes, write_json, write_table
from concept_trak.store.records import Record
from concept_trak.store.tables import from_rows
from jobs.configure import plain_values
from jobs.prepare import Prepared
from jobs.run import Run


def conclude(
    run: Run,
    records: dict[str, list[Record]],
    answers: dict[tuple[str, str], Answer],
    solved: dict[str, Solution],
    tally: Tally,
    seen: dict[str, Seen],
) -> None:
    """Write the results and then the manifest, which makes them the audit's."""
    p, config = run.prepared, run.prepared.config
    counts = {method: solution.count for method, solution in solved.items()}
    write_table(p.audit, "top.parquet", from_rows(top_kinds(config), list(top_rows(config, tally, seen, counts))))
    write_table(p.audit, "rejects.parquet", from_rows(REJECT_KINDS, list(reject_rows(p.store, records))))
    measures = measured(p.audit, config, p.plan)
    spread = {(m, column(c.name, f)): solved[m].spread[i][FORMS.index(f)]
              for m in solved for i, c in enumerate(config.concepts) for f in FORMS}  # fmt: skip
    facts = tuple(_facts(run, method, records[method], solved[method]) for method in config.methods)
    methods = {f.method: _numbers(f) | {"bytes": sum(r.bytes for r in records[f.method])} for f in facts}
    metrics = {"concepts": measures, "methods": methods, "stages": run.progress.counters()}
    write_json(p.audit, "metrics.json", metrics)
    sections = tuple(_section(p, c, answers, tally, seen, counts, measures, spread) for c in config.concepts)
    write_bytes(p.audit, "report.html", render(_page(p, sections, facts, records)).encode())
    finish(
        p.audit,
        _files(p, records),
        [r for parts in records.values() for r in parts],
        {"fingerprints": p.work.fingerprints},
    )


def _files(p: Prepared, records: dict[str, list[Record]]) -> list[str]:
    whole = ["audit.yaml", "plan.parquet", "top.parquet", "rejects.parquet", "metrics.json", "report.html"]
    for method, parts in records.items():
        whole += [gram_file(method), *(query_file(method, c.name) for c in p.config.concepts)]
        whole += [scores_file(method, r.shard) for r in parts if p.config.scores == "all"]
    return whole


def _facts(run: Run, method: str, parts: list[Record], s: Solution) -> Facts:
    row = run.prepared.config.methods[method]
    return Facts(
        method=method,
        train=f"{row.train.trajectory} · {row.train.direction}",
        query=f"{row.query.trajectory} · {row.query.direction}",
        unit=row.unit,
        fingerprint=run.prepared.work.fingerprints[method],
        evaluations=row.train.evaluations,
        seconds=sum(r.seconds for r in parts),
        samples=sum(r.rows for r in parts),
        computed=run.computed[method],
        rejected=sum(r.rejected for r in parts),
        features=run.prepared.settings[method]["projector"]["dim"],
        trace=s.trace,
        lam=s.lam,
    )


def _numbers(facts: Facts) -> dict[str, Any]:
    return {
        k: getattr(facts, k)
        for k in ("evaluations", "seconds", "samples", "computed", "rejected", "features", "trace", "lam")
    }


def _section(p: Prepared, concept: Concept, answers, tally, seen, counts, measures, spread) -> Section:
    rankings = tuple(
        _ranking(p, concept, method, form, tally, seen, counts[method], measures, spread)
        for method in p.config.methods
        for form in FORMS
    )
    pictures = answers[next(iter(p.config.methods)), concept.name].pictures
    return Section(concept.name, concept.text, concept.without, concept.scope, dict(concept.truth), pictures, rankings)


def _ranking(p: Prepared, concept: Concept, method: str, form: str, tally, seen, count, measures, spread) -> Ranking:
    key = (method, column(concept.name, form))
    ends, shown = tally.ends[key], p.config.shown

    def thumbs(entries: list[Entry], end: str) -> tuple[Thumb, ...]:
        return tuple(
            Thumb(i, seen[i].caption, score, percentile(rank, end, count), rank, seen[i].png, seen[i].labels,
                  shows(concept, seen[i].labels) if concept.truth else None)
            for rank, (score, i, _) in enumerate(entries[:shown], 1)
        )  # fmt: skip

    metrics = measures.get(concept.name, {}).get(column(method, form), {})
    histogram = tuple(int(n) for n in tally.histogram[key])
    return Ranking(
        method, form, thumbs(ends.top, "top"), thumbs(ends.bottom, "bottom"), histogram, SPAN * spread[key], metrics
    )


def _page(
    p: Prepared, sections: tuple[Section, ...], facts: tuple[Facts, ...], records: dict[str, list[Record]]
) -> Page:
    rejects = rejects_by_reason(r for parts in records.values() for r in parts)
    finished = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    c = p.config
    return Page(p.audit.id, finished, c.model.path, c.data.uri, p.parameters, p.samples, p.sources,
                sections, facts, rejects, dict(_flat(plain_values(c))))  # fmt: skip


def _flat(values: Any, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def tell(p: Prepared, line: Callable[[str], None]) -> None:
    """A table per concept from what lies in the store, and where the page is."""
    top = read_table(p.audit, "top.parquet").to_pylist()
    metrics = json.loads(p.store.read(p.audit.name("metrics.json")))["concepts"]
    for concept in p.config.concepts:
        line(f"\n{concept.name}: {concept.text!r} without it: {concept.without!r} ({concept.scope})")
        for method in p.config.methods:
            rows = [
                r
                for r in top
                if r["concept"] == concept.name
                and r["method"] == method
                and r["form"] == "damped"
                and r["end"] == "top"
            ]
            graded = metrics.get(concept.name, {}).get(method)
            grade = ""
            if graded:
                grade = (f"  AP {graded['average_precision']:.2f} (base rate {graded['base_rate']:.2f}), "
                         f"P@10 {graded['precision_at_10']:.1f}")  # fmt: skip
            line(f"  {method}{grade}")
            for r in rows[:5]:
                line(f"    {r['rank']:>3}  {r['score']:>10.3g}  {r['sample_id']:<20} {r['caption']}")
    where = p.store.uri.removeprefix("file://")
    line(f"\nreport     {where}/{p.audit.name('report.html')}")
