"""The end of an audit: tables, metrics, the page, last the manifest; and what a person sees on the terminal."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from concept_trak.audit.aggregate import KINDS
from concept_trak.audit.diff import compare, difference_files, earlier, write
from concept_trak.audit.layer_scores import FILE as JOINT_FILE
from concept_trak.audit.layer_scores import rows as joint_rows
from concept_trak.audit.layer_scores import write as write_joint
from concept_trak.audit.pipeline import Found, Run
from concept_trak.audit.prepare import Prepared, told_of
from concept_trak.audit.results import REJECT_KINDS, reject_rows, rejects_by_reason, top_kinds, top_rows
from concept_trak.audit.score import scorings
from concept_trak.report.build_audit_page import facts, page, picture
from concept_trak.report.diff_page import page_file, write_page
from concept_trak.report.index_page import write_index
from concept_trak.report.render import render, render_concept
from concept_trak.store.manifest import (
    beside_report,
    finish_audit,
    gram_file,
    groups_file,
    query_file,
    read_table,
    scores_file,
    sums_file,
    write_bytes,
    write_json,
    write_table,
)
from concept_trak.store.tables import from_rows


def conclude(run: Run, found: Found) -> None:
    """Write the results and then the manifest, which makes them the audit's."""
    p, config = run.prepared, run.prepared.config
    counts = {method: solution.count for method, solution in found.solved.items()}
    top = list(top_rows(config, found.tally, found.seen, counts))
    write_table(p.audit, "top.parquet", from_rows(top_kinds(config), top))
    if found.shares.parts is not None:
        write_joint(p.audit, list(joint_rows(top, found.shares.names, found.shares.parts)))
    write_table(p.audit, "rejects.parquet", from_rows(REJECT_KINDS, list(reject_rows(p.store, found.records))))
    costs = {method: _cost(run, found, method) for method in config.methods}
    asked = {concept.name: told_of(concept, found.answers, config.methods) for concept in config.concepts}
    metrics = {"data": _data(p, found), "questions": asked, "concepts": found.measures, "methods": costs,
               "stages": run.progress.counters()}  # fmt: skip
    write_json(p.audit, "metrics.json", metrics)
    found, compared = _compared(p, found)
    finish_audit(p.audit, [*_files(p, found), *compared, *_report(run, found)], found.parts,
           {"fingerprints": p.work.fingerprints})  # fmt: skip
    write_index(p.store)


def _compared(p: Prepared, found: Found) -> tuple[Found, list[str]]:
    """With the differences since the audit that `since` names, and the files about them."""
    before = earlier(p.audit, p.config.since)
    if before is None:
        return found, []
    differences = tuple(compare(before, p.audit))
    write(before, p.audit, differences)
    write_page(before, p.audit, differences)
    return replace(found, since=before.id, differences=differences), [*difference_files(before), page_file(before)]


def _report(run: Run, found: Found) -> list[str]:
    """Write the page, and what stands beside it; all their names."""
    shown, audit = page(run, found), run.prepared.audit
    files = {"report.html": render(shown).encode()}
    if shown.files:
        files |= {beside_report(f"{s.name}.html"): render_concept(shown, s).encode() for s in shown.sections}
        for concept in run.prepared.config.concepts:
            pictures = found.answers[next(iter(run.prepared.config.methods)), concept.name].pictures
            files |= {beside_report(picture(concept.name, i)): png for i, png in enumerate(pictures)}
    for name, data in files.items():
        write_bytes(audit, name, data)
    pictures = (name for seen in found.seen.values() for name in (seen.thumbnail, seen.original) if name)
    return [*files, *dict.fromkeys(map(beside_report, pictures))]


def _data(p: Prepared, found: Found) -> dict[str, Any]:
    """What the data are: samples planned, and how many were rejected for each reason; empty captions are no_caption."""
    first = next(iter(found.records.values()))
    return {"samples": p.samples, "sources": p.sources, "rejected": rejects_by_reason(first)}


COSTS = ("evaluations", "seconds", "samples", "computed", "rejected", "features", "trace", "lam")


def _cost(run: Run, found: Found, method: str) -> dict[str, Any]:
    told = facts(run, found, method)
    return {**{name: getattr(told, name) for name in COSTS}, "bytes": sum(r.bytes for r in found.records[method])}


def _files(p: Prepared, found: Found) -> list[str]:
    whole = ["audit.yaml", "plan.parquet", "top.parquet", "rejects.parquet", "metrics.json"]
    whole += [JOINT_FILE] if found.shares.parts is not None else []
    for method, parts in found.records.items():
        whole += [gram_file(method), *(query_file(method, c.name) for c in p.config.concepts)]
        whole += [scores_file(method, r.shard) for r in parts if p.config.scores == "all"]
        if p.config.aggregates:
            whole += [groups_file(method, kind) for kind in KINDS]
            whole += [sums_file(method, item.records[0].shard) for item in scorings(method, parts)]
    return whole


def tell(p: Prepared, line: Callable[[str], None]) -> None:
    """A table per concept from what lies in the store, and where the page is."""
    table = read_table(p.audit, "top.parquet").to_pylist()
    best = [r for r in table if (r["form"], r["end"]) == ("damped", "top") and r["rank"] <= 5]
    told = json.loads(p.store.read(p.audit.name("metrics.json")))
    metrics, asked, rejected = told["concepts"], told.get("questions", {}), told["data"]["rejected"]
    if rejected:
        counted = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        empty = rejected.get("no_caption", 0) / p.samples
        line(f"rejected   {counted} of {p.samples} samples ({empty:.1%} without a caption)")
    for concept in p.config.concepts:
        line(f"\n{concept.name}: {concept.question} ({concept.scope})")
        agreement = asked.get(concept.name, {}).get("agreement", {})
        for method in p.config.methods:
            line(f"  {method}{_grade(metrics.get(concept.name, {}).get(method))}{_agreed(agreement.get(method))}")
            for r in best:
                if (r["concept"], r["method"]) == (concept.name, method):
                    same = f"  (the same image as {r['duplicate_of']})" if r["duplicate_of"] else ""
                    line(f"    {r['rank']:>3}  {r['score']:>10.3g}  {r['sample_id']:<20} {r['caption']}{same}")
    where = p.store.uri.removeprefix("file://")
    line(f"\nreport     {where}/{p.audit.name('report.html')}")


def _grade(measures: dict[str, float] | None) -> str:
    """AP beside its base rate, where labels are known."""
    if measures is None:
        return ""
    ap, base, hits = (measures[name] for name in ("average_precision", "base_rate", "precision_at_10"))
    return f"  AP {ap:.2f} (base rate {base:.2f}), P@10 {hits:.1f}"


def _agreed(cosines: list[float] | None) -> str:
    """How far each phrasing agrees with the others, in their order."""
    return f"  phrasings agree to {', '.join(f'{c:.2f}' for c in cosines)}" if cosines else ""
