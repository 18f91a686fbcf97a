"""From the results of an audit to the values that its page shows."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS, PUBLISHED, RECOMMENDED, Method
from concept_trak.attribution.ranking import SPAN, Entry
from concept_trak.audit.aggregate import GroupStatistics
from concept_trak.audit.comparison import overlaps
from concept_trak.audit.diff import CHANGED, NEW, Difference
from concept_trak.audit.pipeline import AuditRun
from concept_trak.audit.results import certainties, intervals, percentile, rejects_by_reason, shows
from concept_trak.audit.retrieval_ranks import FORMS, column
from concept_trak.audit.stages import StageResults
from concept_trak.config import plain_values
from concept_trak.report.answer_in_words import answers
from concept_trak.report.audit_page import Change, Facts, Moved, Other, Page, Ranking, Section, Thumb
from concept_trak.report.damping_chart import agreement_chart
from concept_trak.report.render import PIXELATED_BELOW

STATUS = {PUBLISHED: "published", RECOMMENDED: "recommended"}


def page(run: AuditRun, results: StageResults) -> Page:
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
        sections=tuple(_section(run, results, concept) for concept in config.concepts),
        facts=tuple(facts(run, results, method) for method in config.methods),
        rejects=rejects_by_reason(results.parts),
        settings=dict(_flat(plain_values(config))),
        since=results.since,
        files=run.in_files(results.tally),
        others=others(config.methods),
        left_out=tuple((str(entry), ", ".join(entry.names)) for entry in p.left_out),
        damping_chart=agreement_chart({m: results.solutions[m].damping for m in config.methods}),
    )


def facts(run: AuditRun, results: StageResults, method: str) -> Facts:
    """A method's row in words, and its cost."""
    row, parts, solved = run.prepared.config.methods[method], results.records[method], results.solutions[method]
    return Facts(
        method=method,
        train=f"{row.train.trajectory} · {row.train.direction}",
        query=f"{row.query.trajectory} · {row.query.direction}",
        unit=_norm_in_words(row),
        fingerprint=run.prepared.work.fingerprints[method],
        evaluations=row.train.evaluations,
        seconds=float(sum(r.seconds for r in parts)),
        samples=sum(r.rows for r in parts),
        computed=run.computed[method],
        rejected=sum(r.rejected for r in parts),
        features=run.prepared.settings[method]["projector"]["dim"],
        trace=solved.trace,
        lam=solved.lam,
        damping=solved.damping,
        status=row_status(method, row),
    )


def _norm_in_words(row: Method) -> str:
    if not row.unit:
        return "no"
    tempered = "" if row.exponent == 1 else f", exponent {row.exponent:g}"
    return {"all": "over all parameters", "layer": "layer by layer"}[row.over] + tempered


def row_status(name: str, row: Method) -> str:
    """`published` or `recommended` if the row is that one, with the settings of the table; else empty."""
    return STATUS.get(name, "") if row == METHODS.get(name) else ""


def others(methods: Mapping[str, Method]) -> tuple[Other, ...]:
    """The published and the recommended row, without those that the audit uses."""
    return tuple(Other(m, what, METHODS[m].train.evaluations) for m, what in STATUS.items() if m not in methods)


def _section(run: AuditRun, results: StageResults, concept: Concept) -> Section:
    config, methods = run.prepared.config, run.prepared.config.methods
    rankings = tuple(_ranking(run, results, concept, method, form) for method in methods for form in FORMS)
    query = results.queries[next(iter(methods)), concept.name]
    changes = tuple(_change(d) for d in results.differences if (d.concept, d.form) == (concept.name, "damped"))
    section = Section(
        name=concept.name,
        text=concept.text,
        without=concept.without,
        scope=concept.scope,
        truth=dict(concept.truth),
        pictures=query.pictures,
        rankings=rankings,
        changes=changes,
        kind=concept.kind,
        question=concept.question,
        certainty=certainties(config, results.tally, concept),
        fit=query.fit,
        examples=query.examples,
        overlaps=overlaps(config, results.tally, concept),
    )
    if concept.minus or concept.phrasings:
        section = replace(section, written=concept.condition_pairs)
    if concept.phrasings:
        section = replace(section, agreement={m: results.queries[m, concept.name].agreement for m in methods})
    if run.in_files(results.tally):
        files = tuple(picture(concept.name, i) for i in range(len(query.pictures)))
        section = replace(section, pictures=(), files=files, small=_small(run))
    return replace(section, answers=answers(section, config.data.uri))


def _small(run: AuditRun) -> bool:
    """Whether pictures, which have the model's size, are enlarged with sharp edges."""
    return run.prepared.resolution < PIXELATED_BELOW


def picture(concept: str, number: int) -> str:
    """The file of one of a query's own pictures, relative to the folder of the report."""
    return f"queries/{concept}-{number}.png"


def _change(d: Difference) -> Change:
    moved = tuple(
        Moved(sample_id=m.sample_id, caption=m.caption, before=m.rank_before, after=m.rank_after, data=m.data)
        for m in d.moves
        if m.rank_before != m.rank_after
    )
    return Change(
        method=d.method,
        entered=d.count("entered"),
        left=d.count("left"),
        stayed=d.count("stayed"),
        new=d.share(NEW),
        changed=d.share(CHANGED),
        cosine=d.cosine,
        moved=moved,
    )


def _ranking(run: AuditRun, results: StageResults, concept: Concept, method: str, form: str) -> Ranking:
    config, key = run.prepared.config, (method, column(concept.name, form))
    ends, solved = results.tally.ends[key], results.solutions[method]
    spread = solved.spread[config.concepts.index(concept)][FORMS.index(form)]
    top, bottom = (
        tuple(_thumb(run, results, (concept, method, form), entry, rank, end) for rank, entry in enumerate(entries, 1))
        for end, entries in (("top", ends.top[: config.shown]), ("bottom", ends.bottom[: config.shown]))
    )
    histogram = tuple(int(count) for count in results.tally.histogram[key])
    metrics = results.measures.get(concept.name, {}).get(column(method, form), {})
    through = results.layers.through(method, concept.name, form, [thumb.sample_id for thumb in top])
    return Ranking(
        method=method,
        form=form,
        top=top,
        bottom=bottom,
        histogram=histogram,
        span=SPAN * spread,
        metrics=metrics,
        groups=_groups(results, *key),
        through=through,
    )


def _groups(results: StageResults, method: str, name: str) -> dict[str, tuple[GroupStatistics, ...]]:
    by_kind = results.aggregates[method].groups.get(name, {}) if method in results.aggregates else {}
    return {kind: groups for kind, groups in by_kind.items() if groups}


def _thumb(
    run: AuditRun, results: StageResults, of: tuple[Concept, str, str], entry: Entry, rank: int, end: str
) -> Thumb:
    (score, sample, _), (concept, method, form) = entry, of
    picture = results.samples[sample]
    return Thumb(
        sample_id=sample,
        caption=picture.caption,
        score=score,
        percentile=percentile(rank, end, results.solutions[method].count),
        rank=rank,
        png=picture.png,
        labels=picture.labels,
        relevant=shows(concept, picture.labels) if concept.truth else None,
        file=picture.thumbnail,
        original=picture.original,
        small=_small(run),
        origin=f"{picture.source}, row {picture.row}",
        through=results.layers.strongest(method, concept.name, form, [sample]),
        interval=_interval(results, (method, column(concept.name, form)), end, rank),
    )


def _interval(results: StageResults, key: tuple[str, str], end: str, rank: int) -> tuple[Any, ...]:
    ends = tuple(intervals(results.tally, key, end, rank).values())
    return () if None in ends else ends


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, (list, dict)) else str(value)
