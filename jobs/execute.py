"""The executor of a verb's work: its configuration, and the library's `Mapper` over an executor of `cluster/`."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.executor import Budgets, Executor, Failure, Outcome, Resources, Task
from cluster.metrics import exported
from cluster.resources import usable_cpus
from cluster.serial import Serial
from concept_trak import UserError
from concept_trak.audit.mapper import Stopped
from concept_trak.config import AuditConfig, WorkerSettings
from concept_trak.data.text import escaped
from concept_trak.models.location import is_hub_id
from concept_trak.store.manifest import Audit, write_bytes
from concept_trak.store.secrets import redacted
from concept_trak.store.store import Store
from jobs.configure import CONF, NOT_SHIPPED
from jobs.metrics import METRICS, Meter
from jobs.progress import Progress

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterConfig:
    kind: str = "local"
    """serial (this process), local (Ray on this machine) or ray (an existing cluster)."""
    address: str = "auto"
    """ray: the cluster's address."""
    workers: int = 0
    """Number of workers; 0 starts as many as fit now."""
    cpus: float = 1.0
    """Cores, and torch threads, of a worker."""
    gpus: float = 0.0
    """The share of a GPU that a worker has, or its number of GPUs, among which the denoising network is divided."""
    memory: int = 0
    """Bytes that Ray reserves for a worker; 0 reserves none."""
    price: float = 0.0
    """Price of one worker for an hour, in any currency; `preflight` uses it for the cost."""
    shared_store: bool = False
    """ray: whether a `file` store is one folder that every node sees."""

    def __post_init__(self) -> None:
        if self.kind not in ("serial", "local", "ray"):
            raise UserError(f"cluster.kind={self.kind!r}; expected one of: serial, local, ray")
        _at_least("cluster.workers", self.workers, 0)
        _at_least("cluster.cpus", self.cpus, 0.01)
        _at_least("cluster.price", self.price, 0)
        if self.gpus > 1 and self.gpus % 1:
            raise UserError(f"cluster.gpus={self.gpus:g}; expected at most 1, or a whole number of GPUs")


@dataclass(frozen=True)
class BudgetConfig:
    rejects: float = 0.05
    """Share of the planned samples that may be rejected before the run stops (exit 3)."""
    infrastructure: int = 10
    """How often one shard may lose its worker, node or storage before the run stops (exit 4)."""
    memory: int = 3
    """How often one shard may run out of memory; each time its batch is halved."""
    application: int = 2
    """How often one shard is tried again after an error of its own work."""
    lease: float = 3600.0
    """Seconds that one attempt, or the start of a worker, may take. A worker that takes longer is killed, and its shard
    runs elsewhere; this counts as infrastructure. An hour is six times the planned time of a shard. Raise it if shards
    take longer, as on CPUs; 0 means no limit. It has no effect with cluster=serial."""

    def __post_init__(self) -> None:
        _at_least("budget.rejects", self.rejects, 0)
        _at_least("budget.lease", self.lease, 0)


def _at_least(key: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise UserError(f"{key}={value}; expected at least {least}, and finite")


@dataclass(frozen=True)
class RunConfig:
    """How the work of a verb is done. No result depends on these settings."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    interval: float = 10.0
    """Seconds between two lines of progress without a terminal, and between two writes of progress.json."""

    def __post_init__(self) -> None:
        _at_least("interval", self.interval, 0)


def worker_settings(cluster: ClusterConfig) -> WorkerSettings:
    """The share of its machine that one worker may use."""
    neighbours = 1 if cluster.kind == "serial" else cluster.workers
    if cluster.kind == "local" and not neighbours:
        neighbours = max(1, int(usable_cpus() / cluster.cpus))
    return WorkerSettings(cluster.cpus, math.ceil(cluster.gpus), memory=cluster.memory, neighbours=neighbours)


def executor(cluster: ClusterConfig, budget: BudgetConfig) -> Executor:
    """The executor of `cluster.kind`. Ray is imported only if it is used."""
    budgets = Budgets(
        infrastructure=budget.infrastructure,
        memory=budget.memory,
        application=budget.application,
        lease=budget.lease or math.inf,
    )
    if cluster.kind == "serial":
        return Serial(budgets)
    from cluster.on_ray import OnRay

    root = str(CONF.parent)
    if cluster.kind == "local":
        return OnRay(workers=cluster.workers, env_vars={"PYTHONPATH": root}, budgets=budgets)
    return OnRay(
        address=cluster.address, workers=cluster.workers, working_dir=root, excludes=NOT_SHIPPED, budgets=budgets
    )


@dataclass
class ExecutorMapper:
    """The library's `Mapper` over an executor, with progress, and with logs of failed tasks in the audit's folder.

    Args:
        run: how the work is done.
        audit: the audit whose folder gets progress.json and failures/; None writes neither.
    """

    run: RunConfig
    audit: Audit | None = None

    @cached_property
    def executor(self) -> Executor:
        """Made at the first task, so that mistakes in the settings are reported before Ray starts."""
        return executor(self.run.cluster, self.run.budget)

    @cached_property
    def progress(self) -> Progress:
        return Progress(self.audit, self.run.interval, meter=meter(self.run.cluster, self.audit))

    def __call__(self, stage: str, worker: type[Any], settings: Any, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        c, failures = self.run.cluster, list[Outcome]()
        task = Task(worker, settings)
        resources = Resources(c.cpus, c.gpus, c.memory)
        outcomes = self.executor.map(task, tasks, resources, lambda load: self.progress.watch(load))
        for outcome in self.progress.track(stage, outcomes, tasks):
            if outcome.error is None:
                yield outcome.item, outcome.result
            else:
                failures.append(outcome)
                self._log(stage, outcome)
        if failures:
            raise stopped(stage, failures, len(tasks))

    def for_audit(self, audit: Audit) -> "ExecutorMapper":
        """The same executor for another audit."""
        mapper = ExecutorMapper(self.run, audit)
        mapper.__dict__["executor"] = self.executor
        return mapper

    def _log(self, stage: str, outcome: Outcome) -> None:
        """Write the traceback of a failed task to a file in the store; earlier files of the task are kept."""
        if self.audit is None or outcome.error is None:
            return
        number = len(self.audit.store.names(self.audit.name(f"failures/{stage}")))
        log = escaped(redacted(outcome.error), "\n\t").encode()
        try:
            write_bytes(self.audit, f"failures/{stage}/{number:04d}-{outcome.item.label}.log", log)
        except OSError as error:  # the failure of the task is reported at the end, and matters more
            LOG.warning("the traceback of a failed task is not written: %s", error)


def stopped(stage: str, failures: Sequence[Outcome], total: int) -> Stopped:
    """The exception for a stage with failed tasks: one message for a mistake of the user, else the first traceback."""
    for outcome in failures:
        if outcome.failure is Failure.INPUT:
            return Stopped(outcome.message, 2)
    return Stopped(
        f"{stage}: {len(failures)} of {total} failed, the others are done. Run the same command again to retry only "
        f"those. The first error:\n{failures[0].error}",
        5,
    )


def meter(cluster: ClusterConfig, audit: Audit | None) -> Meter:
    """The metrics of a run: exported on an existing cluster, otherwise dropped."""
    return Meter(exported(METRICS, {"audit": audit.id})) if cluster.kind == "ray" and audit is not None else Meter()


def require_reachable(config: AuditConfig, cluster: ClusterConfig) -> None:
    """Check that the store, data and model are the same for every machine.

    Raises:
        UserError: a path is relative or a local store is not declared as shared on a cluster of several machines, or
            the store is in memory and the workers are other processes.
    """
    model = config.model
    paths = {"store": config.store, "data.uri": config.data.uri, "model.path": model.path,
             "model.weights": model.weights, "model.lora": model.lora}  # fmt: skip
    if cluster.kind == "ray":
        for key, value in (*paths.items(), *(("model.embeddings", path) for path in model.embeddings)):
            local = value and "://" not in value and not (key.startswith("model.") and is_hub_id(value))
            if local and not Path(value).is_absolute():
                raise UserError(f"{key}={value!r} is another folder on each node; give an absolute path or a URL")
        if Store(config.store).scheme == "file" and not cluster.shared_store:
            raise UserError(
                f"store={config.store!r} is a folder: if every node sees the same one, set cluster.shared_store=true; "
                "else use an object store such as s3://bucket/prefix"
            )
    if config.store.startswith("memory://") and cluster.kind != "serial":
        raise UserError(
            f"store={config.store!r} is the memory of one process; use it with cluster=serial, or choose a folder"
        )


def on_one_worker(run: RunConfig) -> RunConfig:
    """The same run on a single worker, for a dry run."""
    return replace(run, cluster=replace(run.cluster, workers=1))
