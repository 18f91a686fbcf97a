"""`jobs.audit preflight=true`: two samples and one query end to end, where the work will be done, and what all costs.

Works in a folder of its own inside the store, which is removed again: nothing is published, nothing is kept.
"""

import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from cluster.executor import Executor
from concept_trak.config import AuditConfig
from concept_trak.rehearsal import Asked, Rehearsed, feature_bytes, few
from concept_trak.results import rejects_by_reason
from concept_trak.stages import Featuring, Work
from concept_trak.store.commit import Store
from jobs.prepare import Prepared, located, prepare
from jobs.progress import Progress
from jobs.run import Run


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


@contextmanager
def _scratch(config: AuditConfig) -> Iterator[AuditConfig]:
    Store(config.store).probe()
    folder = f"{config.store.rstrip('/')}/preflight-{uuid.uuid4().hex[:8]}"
    own = replace(
        config, store=folder, audit="preflight", keep_states=False
    )  # states that are kept would hide the time
    try:
        yield own
    finally:
        store = Store(own.store)
        for name in (name for folder in ("features", "audits", "states") for name in store.names(folder)):
            store.delete(name)
        if store.scheme == "file":  # where folders are more than names
            shutil.rmtree(own.store.removeprefix("file://"), ignore_errors=True)


def _rehearse(run: Run) -> tuple[dict[str, Rehearsed], dict[str, Asked], float]:
    """What samples and a question of each method took, and the seconds in which a worker starts."""
    p, begun = run.prepared, time.monotonic()
    items = [Featuring((method,), shard) for method in p.config.methods for shard in p.plan]
    done = {item.methods[0]: r for item, r in run.map("featurize", "concept_trak.rehearsal:Rehearse", items)}
    starting = max(0.0, time.monotonic() - begun - sum(r.spent for r in done.values()))
    records = {method: list(done[method].records) for method in p.config.methods}
    for method, parts in records.items():
        if not sum(part.rows for part in parts):
            raise ValueError(f"not one of the first samples has a feature for {method}: {rejects_by_reason(parts)}")
    summed = run.sum_grams(records)
    asked = {q.method: r for q, r in run.map("query", "concept_trak.rehearsal:RehearseQuery", list(p.questions))}
    run.solve({(m, one.answer.concept): one.answer for m, one in asked.items()}, records, summed)
    _require_finite(run.score(records).entries())
    return done, asked, starting


def _require_finite(entries: object) -> None:
    for score, sample, _ in entries:  # type: ignore[attr-defined]
        if not math.isfinite(score):
            raise ValueError(f"the score of {sample} is {score}; try model.precision=float32, or a larger damping")


def report(p: Prepared, rehearsed: dict[str, Rehearsed], asked: dict[str, Asked], starting: float) -> list[str]:
    """What ran, and what the whole run will take, each line with what it was reckoned from."""
    config, c = p.config, p.config.cluster
    each = sum(r.seconds / r.batch for r in rehearsed.values())
    asking = sum(asked[q.method].seconds(q) for q in p.questions)
    hours = (each * p.samples + asking + starting * (c.workers or 1)) / 3600
    host, device = (max(getattr(r, kind) for r in rehearsed.values()) for kind in ("host_bytes", "device_bytes"))
    size, k = feature_bytes(config, p.parameters), config.projector.width(p.parameters)
    batch = "" if config.model.batch != 1 else " (not checked: model.batch=1)"
    spread = f"; {hours / c.workers:.3g} h on {c.workers} workers" if c.workers else ""
    price = f" x {c.price:g} = {hours * c.price:.4g}" if c.price else "; cluster.price=<of one> shows the cost"
    rows, together = (max(getattr(r, n) for r in rehearsed.values()) for n in ("rows", "batch"))
    return [
        f"preflight  {rows} samples and 1 query end to end: finite, and samples do not see each other{batch}",
        f"time       {each:.3g} s a sample, {asking:.3g} s for {len(p.questions)} queries, {starting:.3g} s until a "
        f"worker works: {hours:.3g} worker-hours for {p.samples} samples{spread}",
        f"memory     {host / 1e9:.2f} GB in the worker, {device / 1e9:.2f} GB on its GPU, at a batch of {together}; a "
        "larger one takes more",
        f"storage    {size * p.samples * len(config.methods) / 1e9:.3g} GB of features, {size} bytes a sample and "
        f"method; {4 * k * k / 1e9:.3g} GB a Gram",
        f"cost       {hours:.3g} worker-hours{price}",
    ]
