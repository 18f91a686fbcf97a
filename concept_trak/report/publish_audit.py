"""The end of an audit: tables, metrics, the page and last the manifest; and its lines on the terminal."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import Any

from pyarrow import ArrowException

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.audit.aggregate import KINDS
from concept_trak.audit.comparison import Overlap, overlaps
from concept_trak.audit.damping import choice_values, damping_file
from concept_trak.audit.diff import compare, difference_files, earlier, write_differences
from concept_trak.audit.layer_scores import FILE as JOINT_FILE
from concept_trak.audit.layer_scores import joint_rows as joint_rows
from concept_trak.audit.layer_scores import write_joint as write_joint
from concept_trak.audit.mapper import Mapper, serial
from concept_trak.audit.pipeline import MOST_REJECTS, AuditRun
from concept_trak.audit.plan import readable
from concept_trak.audit.prepare import Prepared, prepare
from concept_trak.audit.query_features import MethodQuery
from concept_trak.audit.results import certainties, rejects_by_reason, top_kinds, top_rows
from concept_trak.audit.retrieval_ranks import graded_concepts
from concept_trak.audit.score import score_tasks
from concept_trak.audit.stages import StageResults, run_stages
from concept_trak.config import AuditConfig, WorkerSettings
from concept_trak.data.image_reads import image_reads
from concept_trak.data.inventory import describe_left_out
from concept_trak.data.text import escaped, one_line
from concept_trak.report.answer_in_words import LONE, no_features, overlap_line, too_little_agreement
from concept_trak.report.build_audit_page import facts, page, picture
from concept_trak.report.diff_page import page_file, write_page
from concept_trak.report.index_page import write_index
from concept_trak.report.render import render, render_concept
from concept_trak.store.manifest import (
    Audit,
    beside_report,
    finish_audit,
    graded_file,
    gram_file,
    groups_file,
    query_file,
    read_manifest,
    read_table,
    scores_file,
    sums_file,
    write_bytes,
    write_json,
    write_table,
)
from concept_trak.store.tables import from_rows


def run_audit(
    config: AuditConfig,
    mapper: Mapper = serial,
    *,
    worker: WorkerSettings = WorkerSettings(gpus=1),
    most_rejects: float = MOST_REJECTS,
    line: Callable[[str], None] = print,
    counters: Callable[[], dict[str, Any]] = dict,
) -> Audit:
    """Run a whole audit: featurize, solve, score, publish. It skips finished work, so it resumes a killed run.

    Args:
        config: the audit's settings.
        mapper: where the work is done; `serial` is this process.
        worker: what one worker may use of its machine.
        most_rejects: share of the samples, 0 ... 1, that may be rejected before the run stops.
        line: takes each line of text about the run.
        counters: returns the counts of the stages, for metrics.json.

    Returns:
        The finished audit.

    Raises:
        UserError: a setting, the model, the data or the store is wrong; raised before any work starts.
        Stopped: too many samples were rejected, or some work failed; finished work is kept.
    """
    p = prepare(config, worker, mapper)
    for text in announcement(p):
        line(text)
    if read_manifest(p.audit) is None:
        run = AuditRun(prepared=p, mapper=mapper, line=line, most_rejects=most_rejects, counters=counters)
        publish_audit(run, run_stages(run))
    else:
        line(f"audit {p.audit.id} is finished: nothing to compute, no gradient work done")
    describe_answer(p, line)
    return p.audit


def announcement(p: Prepared) -> Iterator[str]:
    """The settings and sizes of an audit that is about to run, in lines of text."""
    d, m, sets = p.demand, p.config.model, len(set(p.work.fingerprints.values()))
    yield f"audit      {p.audit.id} on {p.store.uri}"
    yield f"data       {p.samples} samples in {p.sources} sources, {len(p.plan)} shards"
    if left_out := describe_left_out(p.left_out):
        yield f"           {escaped(left_out)}"
    if p.reads_note:
        yield f"           {p.reads_note}"
    attributable = f"{d.parameters:,} attributable parameters in {d.tensors} tensors ({m.parameters})"
    yield f"model      {escaped(m.path)}: {attributable}"
    yield (
        f"size       features {readable(d.feature)} a sample and method, {readable(d.feature * p.samples * sets)} "
        f"in all; gradients at most {readable(d.gradient * m.batch)} a worker at model.batch={m.batch}"
    )
    for concept in p.config.concepts:
        yield f"concept    {concept.name}: {one_line(concept.question)}"


def publish_audit(run: AuditRun, results: StageResults) -> None:
    """Write the results, and then the manifest, which lists them."""
    p, config = run.prepared, run.prepared.config
    counts = {method: solution.count for method, solution in results.solutions.items()}
    top = list(top_rows(config, results.tally, results.samples, counts))
    write_table(p.audit, "top.parquet", from_rows(top_kinds(config), top))
    if results.layers.parts is not None:
        write_joint(p.audit, list(joint_rows(top, results.layers.names, results.layers.parts)))
    data = _data(p, results)
    run.gather_rejects(results.records, data)
    costs = {method: _cost(run, results, method) for method in config.methods}
    questions = {concept.name: question_facts(concept, results.queries, config.methods) for concept in config.concepts}
    certainty = {concept.name: certainty_facts(concept, config, results) for concept in config.concepts}
    compared = {c.name: [asdict(own) for own in overlaps(config, results.tally, c)] for c in config.concepts}
    metrics = {"data": data, "questions": questions, "concepts": results.measures, "certainty": certainty,
               "comparisons": compared, "methods": costs, "stages": run.counters()}  # fmt: skip
    write_json(p.audit, "metrics.json", metrics)
    results, compared = _compared(p, results)
    names = [*_files(p, results), *compared, *_report(run, results)]
    finish_audit(p.audit, [run.listed.get(name, name) for name in names], results.parts,
           {"fingerprints": p.work.fingerprints})  # fmt: skip
    write_index(p.store)


def _compared(p: Prepared, results: StageResults) -> tuple[StageResults, list[str]]:
    """The results with the differences since the audit that `since` names, and the names of their files."""
    before = earlier(p.audit, p.config.since)
    if before is None:
        return results, []
    differences = tuple(compare(before, p.audit))
    write_differences(before, p.audit, differences)
    write_page(before, p.audit, differences)
    return replace(results, since=before.id, differences=differences), [*difference_files(before), page_file(before)]


def _report(run: AuditRun, results: StageResults) -> list[str]:
    """Write the page and its files; returns their names."""
    audit_page, audit = page(run, results), run.prepared.audit
    files = {"report.html": render(audit_page).encode()}
    if audit_page.files:
        files |= {beside_report(f"{s.name}.html"): render_concept(audit_page, s).encode() for s in audit_page.sections}
        for concept in run.prepared.config.concepts:
            pictures = results.queries[next(iter(run.prepared.config.methods)), concept.name].pictures
            files |= {beside_report(picture(concept.name, i)): png for i, png in enumerate(pictures)}
    for name, data in files.items():
        write_bytes(audit, name, data)
    pictures = (name for seen in results.samples.values() for name in (seen.thumbnail, seen.original) if name)
    return [*files, *dict.fromkeys(map(beside_report, pictures))]


def _data(p: Prepared, results: StageResults) -> dict[str, Any]:
    """Samples and sources planned, rejects by reason, and everything that no sample uses."""
    first = next(iter(results.records.values()))
    left_out = [asdict(entry) for entry in p.left_out]
    return {"samples": p.samples, "sources": p.sources, "image_reads": image_reads(p.data.sources, p.shard_rows),
            "rejected": rejects_by_reason(first), "left_out": left_out}  # fmt: skip


def question_facts(
    concept: Concept, queries: Mapping[tuple[str, str], MethodQuery], methods: Iterable[str]
) -> dict[str, Any]:
    """A question with its conditions, and by method the agreement of its phrasings."""
    agreement = {method: list(queries[method, concept.name].agreement) for method in methods}
    return {
        "question": concept.question,
        "conditions": [{"prompt": text, "without": without} for text, without in concept.condition_pairs],
        "agreement": {method: cosines for method, cosines in agreement.items() if cosines},
    }


def certainty_facts(concept: Concept, config: AuditConfig, results: StageResults) -> dict[str, Any]:
    """How far the answer about a concept can be relied on: `fit`, the number of `examples`, and by method the fields of
    `Certainty`."""
    query = results.queries[next(iter(config.methods)), concept.name]
    fit = query.fit
    of_pictures = {} if fit is None or not isfinite(fit.error) else {"fit": fit._asdict() | {"told": fit.told}}
    by_method = {method: asdict(own) for method, own in certainties(config, results.tally, concept).items()}
    return {**of_pictures, "examples": query.examples, "methods": by_method}


COSTS = ("evaluations", "seconds", "samples", "computed", "rejected", "features", "trace", "lam")


def _cost(run: AuditRun, results: StageResults, method: str) -> dict[str, Any]:
    method_facts = facts(run, results, method)
    return {
        **{name: getattr(method_facts, name) for name in COSTS},
        "damping": choice_values(results.solutions[method].damping),
        "bytes": sum(r.bytes for r in results.records[method]),
    }


def _files(p: Prepared, results: StageResults) -> list[str]:
    whole = ["audit.yaml", "plan.parquet", "top.parquet", "rejects.parquet", "metrics.json"]
    whole += [JOINT_FILE] if results.layers.parts is not None else []
    for method, parts in results.records.items():
        whole += [gram_file(method), *(query_file(method, c.name) for c in p.config.concepts)]
        whole += [damping_file(method)] if p.config.damping == "auto" else []
        whole += [scores_file(method, r.shard) for r in parts if p.config.scores == "all"]
        if p.config.aggregates:
            whole += [groups_file(method, kind) for kind in KINDS]
            whole += [sums_file(method, item.first) for item in score_tasks(method, parts)]
        if graded_concepts(p.config):
            whole += [graded_file(method, item.first) for item in score_tasks(method, parts)]
    return whole


def describe_answer(p: Prepared, line: Callable[[str], None]) -> None:
    """Print a table for each concept from the store's files, and the path of the page."""
    try:
        table = read_table(p.audit, "top.parquet").to_pylist()
        metrics_file = json.loads(p.store.read(p.audit.name("metrics.json")))
    except (FileNotFoundError, ValueError, ArrowException) as error:
        raise UserError(
            f"audit {p.audit.id} is finished, and a file of its results is gone or damaged ({one_line(error)}); "
            "`python -m jobs.verify` lists what is. Start a new audit (audit=...): it reuses the features"
        ) from error
    best = [r for r in table if (r["form"], r["end"]) == ("damped", "top") and r["rank"] <= 5]
    metrics, questions, rejected = (
        metrics_file["concepts"],
        metrics_file.get("questions", {}),
        metrics_file["data"]["rejected"],
    )
    if rejected:
        counted = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        empty = rejected.get("no_caption", 0) / p.samples
        line(f"rejected   {counted} of {p.samples} samples ({empty:.1%} without a caption)")
    for concept in p.config.concepts:
        agreement, grades = questions.get(concept.name, {}).get("agreement", {}), metrics.get(concept.name, {})
        certainty = metrics_file.get("certainty", {}).get(concept.name, {})
        for text in concept_lines(concept, p.config.methods, best, grades, agreement, certainty):
            line(text)
        for fields in metrics_file.get("comparisons", {}).get(concept.name, ()):
            line(f"  {overlap_line(Overlap(**fields))}")
    where = p.store.uri.removeprefix("file://")
    line(f"\nreport     {where}/{p.audit.name('report.html')}")


def concept_lines(
    concept: Concept,
    methods: Iterable[str],
    best: Sequence[Mapping[str, Any]],
    grades: Mapping[str, dict[str, float]],
    agreement: Mapping[str, Sequence[float]],
    certainty: Mapping[str, Any],
) -> Iterator[str]:
    """The lines about one concept: its question, and by method the best samples.

    Args:
        best: rows of `top.parquet`, of this concept and others, in the order of the ranks. A method without a row has
            no features other than zero.
        grades, agreement: by method, the measures of the ranking, and how far its phrasings agree, where there are any.
        certainty: as in metrics.json.
    """
    yield f"\n{concept.name}: {one_line(concept.question)} ({concept.scope})"
    examples, by_method = certainty.get("examples", 0), certainty.get("methods", {})
    if examples == 1:
        yield f"  {LONE}"
    for method in methods:
        yield f"  {method}{_grade(grades.get(method))}{_agreed(agreement.get(method))}"
        if method in by_method and (why := too_little_agreement(examples, by_method[method]["reliability"])):
            yield f"    {why}"
        rows = [r for r in best if (r["concept"], r["method"]) == (concept.name, method)]
        for r in rows:
            same = f"  (the same image as {escaped(r['duplicate_of'])})" if r["duplicate_of"] else ""
            sample = f"{escaped(r['sample_id']):<20} {one_line(r['caption'], 100)}{same}"
            yield f"    {r['rank']:>3}  {r['score']:>10.3g}  {sample}"
        if not rows:
            yield f"    {no_features(method)}"


def _grade(measures: dict[str, float] | None) -> str:
    """AP and its base rate; empty without labels."""
    if measures is None:
        return ""
    ap, base, hits = (measures[name] for name in ("average_precision", "base_rate", "precision_at_10"))
    return f"  AP {ap:.2f} (base rate {base:.2f}), P@10 {hits:.1f}"


def _agreed(cosines: Sequence[float] | None) -> str:
    """The agreement of each phrasing with the others, in their order."""
    return f"  phrasings agree to {', '.join(f'{c:.2f}' for c in cosines)}" if cosines else ""
