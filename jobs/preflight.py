"""`jobs.audit preflight=true`: two samples and one query end to end, where the work will be done, and what all costs.

Works in a folder of its own inside the store, which is removed again: nothing is published, nothing is kept.
"""

from collections.abc import Callable
from dataclasses import replace

from cluster.executor import Executor
from concept_trak.audit.dry_run import _rehearse, _scratch, few, report
from concept_trak.audit.pipeline import Run
from concept_trak.audit.prepare import prepare
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig
from jobs.configure import located
from jobs.progress import Progress


def preflight(config: AuditConfig, executor: Callable[[AuditConfig], Executor]) -> int:
    """Load everything, run a little of it, and print what the whole will take; 0 if all went well.

    Raises:
        ValueError: what an audit would refuse, or a number that is not finite.
    """
    config = located(config.complete())
    with _scratch(config) as scratch:
        p = prepare(scratch)
        shard = few(p.plan, config, p.resolution)
        work = Work(replace(p.config, concepts=config.concepts[:1]), p.work.fingerprints)
        questions = tuple(q for q in p.questions if q.concept == config.concepts[0])
        small = replace(p, work=work, plan=[shard], questions=questions)
        run = Run(
            small,
            executor(replace(scratch, cluster=replace(config.cluster, workers=1))),
            Progress(p.audit, config.interval),
        )
        for line in report(p, *_rehearse(run)):
            run.progress.line(line)
    return 0
