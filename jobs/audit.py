"""Audit a model's training data for concepts: `python -m jobs.audit --config-name demo [key=value ...]`.

Runs every stage and skips finished work; the same command resumes. `preflight=true` only loads everything, runs two
samples and one query from end to end, and prints an estimate of the whole audit. Exit codes: see jobs/exit_codes.py.
"""

from dataclasses import dataclass

from concept_trak.audit.dry_run import dry_run
from concept_trak.audit.resolve import resolve
from concept_trak.config import AuditConfig
from concept_trak.report.publish_audit import run_audit
from concept_trak.store.manifest import Audit
from concept_trak.store.store import Store
from jobs.configure import main
from jobs.execute import ExecutorMapper, RunConfig, on_one_worker, require_reachable, worker_settings


@dataclass(frozen=True)
class AuditRunConfig(RunConfig):
    """How the work of an audit is done."""

    preflight: bool = False
    """Only load everything, run two samples and one query from end to end, and print an estimate of the whole audit."""


def audit(config: AuditConfig, run: AuditRunConfig = AuditRunConfig()) -> int:
    """Run an audit to the end, or only its dry run."""
    require_reachable(config, run.cluster)
    config, worker = resolve(config), worker_settings(run.cluster)
    if run.preflight:
        mapper = ExecutorMapper(on_one_worker(run))
        print("\n".join(dry_run(config, mapper, worker, run.cluster.workers, run.cluster.price)))
        return 0
    mapper = ExecutorMapper(run, Audit(Store(config.store), config.audit))
    counters = mapper.progress.counters
    run_audit(
        config, mapper, worker=worker, most_rejects=run.budget.rejects, line=mapper.progress.line, counters=counters
    )
    return 0


if __name__ == "__main__":
    main(audit, "config", AuditConfig, AuditRunConfig)
