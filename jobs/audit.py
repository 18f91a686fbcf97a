"""Audit a model's training data for concepts: `python -m jobs.audit --config-name demo [key=value ...]`.

Does every stage and skips what is done; the same command resumes. Exit codes: 0 done; 2 a mistake to mend, said in one
message; 3 over budget.rejects; 4 over budget.infrastructure, or storage fails; 5 some work failed. `jobs.verify`
adds 6: something on storage is not as it was written.
"""

from concept_trak.audit.pipeline import Found, Run, shares
from concept_trak.audit.prepare import Prepared, prepare, readable
from concept_trak.audit.results import measured
from concept_trak.config import AuditConfig
from concept_trak.report.publish_audit import conclude, tell
from concept_trak.store.manifest import read_manifest
from jobs.configure import main
from jobs.execute import executor, meter
from jobs.exit_codes import ended
from jobs.preflight import preflight
from jobs.progress import Progress


def audit(config: AuditConfig) -> int:
    """Run one audit to its manifest, or say that it is finished, or only its preflight; the result is the exit code."""
    return ended(lambda: preflight(config, executor) if config.preflight else _audit(config))


def _audit(config: AuditConfig) -> int:
    p = prepare(config)
    progress = Progress(p.audit, config.interval, meter(config, p.audit.id))
    _announce(p, progress)
    standing = read_manifest(p.audit)
    if standing is not None:
        progress.line(f"audit {p.audit.id} is finished: nothing to compute, no gradient work done")
        tell(p, progress.line)
        return 0
    _stages(Run(p, executor(config), progress))
    tell(p, progress.line)
    return 0


def _stages(run: Run) -> None:
    records = run.featurize()
    summed = run.sum_grams(records)
    answers = run.ask()
    solved = run.solve(answers, records, summed)
    tally = run.score(records)
    p, aggregated = run.prepared, run.aggregate(records)
    measures = measured(p.audit, p.config, p.plan)
    through, seen = shares(run, tally), run.look(tally)
    conclude(run, Found(records, answers, solved, tally, seen, measures, aggregated, through))


def _announce(p: Prepared, progress: Progress) -> None:
    kind = p.config.cluster.kind
    progress.line(f"audit      {p.audit.id} on {p.store.uri} (cluster={kind})")
    progress.line(f"data       {p.samples} samples in {p.sources} sources, {len(p.plan)} shards")
    d, m, sets = p.demand, p.config.model, len(set(p.work.fingerprints.values()))
    progress.line(
        f"model      {m.path}: {d.parameters:,} attributable parameters in {d.tensors} tensors ({m.parameters})"
    )
    progress.line(
        f"size       features {readable(d.feature)} a sample and method, {readable(d.feature * p.samples * sets)} "
        f"in all; gradients at most {readable(d.gradient * m.batch)} a worker at model.batch={m.batch}"
    )
    for concept in p.config.concepts:
        progress.line(f"concept    {concept.name}: {concept.question}")


if __name__ == "__main__":
    main(AuditConfig, "config", audit)
