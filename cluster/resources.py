"""What one worker needs, what this process may use, and what the nodes of a Ray cluster can hold. Without Ray."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.executor import Resources

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def demand(resources: Resources) -> dict[str, float]:
    """What one worker needs under Ray's names; what it does not need is left out."""
    amounts = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory}
    return {name: amount for name, amount in amounts.items() if amount}


def holdings(amounts: Mapping[str, float]) -> dict[str, float]:
    """The same names from `ray.cluster_resources()` or `ray.available_resources()`."""
    return {name: amounts.get(name, 0.0) for name in ("CPU", "GPU", "memory")}


def capacity(nodes: Sequence[Mapping[str, Any]], resources: Resources) -> int:
    """How many workers the living nodes can hold, each worker on one node; `nodes` as from `ray.nodes()`."""
    needed = demand(resources)
    living = [node["Resources"] for node in nodes if node["Alive"]]
    # 1e-9: twelve workers of 0.1 fit into 1.2 although the floats' quotient is 11.999...
    return sum(min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items()) for node in living)


def shortage(waiting: int, resources: Resources, total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """The warning that `waiting` workers have no node yet: what they need, what exists, what to do."""
    return (
        f"{waiting} workers wait for a node; each asks for {demand(resources)}; the cluster has {holdings(total)}, "
        f"of this free {holdings(free)}. Add nodes or lower the resources."
    )


def actor_options(resources: Resources, env_vars: Mapping[str, str]) -> dict[str, Any]:
    """The options of one actor: Ray restarts and retries nothing, and the actor has as many threads as cores.

    A worker without GPUs must see none: Ray would let it see all those of its node.
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
    """How many cores this process may use, at least 1: not all of the machine's on a shared node or in a container.

    The least of the cores that its affinity allows, the quota of its control groups, and Slurm's share of the job.
    """
    share = variables.get("SLURM_CPUS_PER_TASK") or variables.get("SLURM_CPUS_ON_NODE") or ""
    slurm = int(share) if share.isdigit() else math.inf
    return max(1, int(min(_affinity(), slurm, *_quotas(root))))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def _quotas(root: Path) -> Iterator[float]:
    """The cores that each control group of this process allows, its own and those above it."""
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / name.lstrip("/")
        # A container may see its own group as the mount itself, and not under the name that the host gives it.
        for folder in (group, *group.parents[: len(group.parts) - len(mount.parts)]):
            quota, period = _quota_of(folder)
            yield quota / period if quota > 0 else math.inf


def _quota_of(group: Path) -> tuple[float, float]:
    """(quota, period) in microseconds, of version 2 or 1; a quota below 0 sets no limit."""
    first, second = group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = first.read_text(), second.read_text()
    except FileNotFoundError:
        return -1, 1
    return (-1 if quota == "max" else float(quota)), float(period)
