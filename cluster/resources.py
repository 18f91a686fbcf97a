"""What one worker needs and how many workers the nodes of a Ray cluster can hold, in Ray's terms, without Ray."""

from collections.abc import Mapping, Sequence
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
