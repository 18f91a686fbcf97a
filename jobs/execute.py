import math
from collections.abc import Sequence
from typing import Any

from cluster.executor import Budgets, Executor, Resources, Task
from cluster.metrics import exported
from cluster.serial import Serial
from concept_trak.components.config import ComponentsConfig
from concept_trak.config import AuditConfig
from jobs.configure import CONF, LEFT_AT_HOME
from jobs.exit_codes import failure
from jobs.metrics import METRICS, Meter


def mapped(config: ComponentsConfig, stage: str, task: Task, items: Sequence[Any]) -> list[tuple[Any, Any]]:
    """(item, result) of every item in their order; what failed is told when the others are safe."""
    if not items:
        return []
    c = config.cluster
    outcomes = list(config.machines.map(task, items, Resources(c.cpus, c.gpus, c.memory)))
    if failed := [outcome for outcome in outcomes if outcome.failure]:
        raise failure(stage, failed, len(items))
    order = {item: i for i, item in enumerate(map(str, items))}
    found = [(outcome.item, outcome.result) for outcome in outcomes]
    return sorted(found, key=lambda one: order[str(one[0])])


def executor(config: AuditConfig) -> Executor:
    """Where the work is done, by `cluster.kind`. Ray is imported only if it is used."""
    c, b = config.cluster, config.budget
    budgets = Budgets(b.infrastructure, b.memory, b.application, lease=b.lease or math.inf)
    if c.kind == "serial":
        return Serial(budgets)
    from cluster.on_ray import OnRay

    root = str(CONF.parent)
    if c.kind == "local":
        return OnRay(None, c.workers, {"PYTHONPATH": root}, budgets=budgets)
    return OnRay(c.address, c.workers, working_dir=root, excludes=LEFT_AT_HOME, budgets=budgets)


def meter(config: AuditConfig, audit: str) -> Meter:
    """Where the numbers of a run go: to the metrics of a standing cluster, else nowhere."""
    return Meter(exported(METRICS, {"audit": audit})) if config.cluster.kind == "ray" else Meter()
