"""The resources that a worker needs, that this process may use, and that nodes have. This module needs no Ray."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.executor import Resources

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def demand(resources: Resources) -> dict[str, float]:
    """The resources that one worker needs, by Ray's names, without those of which it needs none."""
    amounts = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory}
    return {name: amount for name, amount in amounts.items() if amount}


def holdings(amounts: Mapping[str, float]) -> dict[str, float]:
    """CPU, GPU and memory of `ray.cluster_resources()` or `ray.available_resources()`."""
    return {name: amounts.get(name, 0.0) for name in ("CPU", "GPU", "memory")}


def capacity(nodes: Sequence[Mapping[str, Any]], resources: Resources) -> int:
    """How many workers the living nodes can hold, each worker on one node; `nodes` as from `ray.nodes()`."""
    needed = demand(resources)
    living = [node["Resources"] for node in nodes if node["Alive"]]
    # With 1e-9, twelve workers of 0.1 fit into 1.2, although the quotient of the floats is 11.999...
    return sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items()) for node in living)


def shortage(waiting: int, resources: Resources, total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """The warning that `waiting` workers have no node: the resources that they need and that exist, and what to do."""
    return (
        f"{waiting} workers wait for a node; each asks for {demand(resources)}; the cluster has {holdings(total)}, "
        f"of this free {holdings(free)}. Add nodes or lower the resources."
    )


def actor_options(resources: Resources, env_vars: Mapping[str, str]) -> dict[str, Any]:
    """The options of one actor: Ray restarts and retries nothing, and the actor has as many threads as cores.

    The GPUs of its node are hidden from a worker without GPUs, because Ray would show it all of them.
    """
    environment = {name: str(max(1, int(resources.cpus))) for name in THREAD_VARIABLES}
    if not resources.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "memory": resources.memory or None,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": environment | dict(env_vars)},
    }


def usable_cpus(variables: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """How many cores this process may use, at least 1. On a shared node or in a container they are not all cores.

    It is the least of three numbers: its affinity, the quota of its control groups, and Slurm's share of the job.
    """
    share = variables.get("SLURM_CPUS_PER_TASK") or variables.get("SLURM_CPUS_ON_NODE") or ""
    slurm = int(share) if share.isdigit() else math.inf
    return max(1, int(min(_affinity(), slurm, *_quotas(root))))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def _quotas(root: Path) -> Iterator[float]:
    """The cores that the control group of this process, and each group above it, allows."""
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / name.lstrip("/")
        # In a container the group may be the mount itself, and not a folder with the name that it has on the host.
        for folder in (group, *group.parents[: len(group.parts) - len(mount.parts)]):
            quota, period = _quota_of(folder)
            yield quota / period if quota > 0 else math.inf


def _quota_of(group: Path) -> tuple[float, float]:
    """(quota, period) of a control group in microseconds; a quota below 0 sets no limit. Version 2 and version 1."""
    first, second = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = first.read_text(), second.read_text()
    except FileNotFoundError:
        return -1, 1
    return (-1 if quota == "max" else float(quota)), float(period)
