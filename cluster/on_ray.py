"""The executor on Ray: it starts Ray on this machine, or joins a cluster that runs already."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.executor import ONE_CPU, Budgets, Outcome, Resources, Task, UserError, Watch, unwatched
from cluster.queue import Constructions, Queue
from cluster.resources import capacity, demand, holdings
from cluster.source import NEVER_SHIPPED

# Ray reads these when it is imported. A value that the user has set stays.
RAY_SETTINGS = {
    # Ray leaves the GPU variables of a worker without GPUs alone, as its next versions do; `actor_options` sets them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray reports nothing to its makers, and prints nothing about it.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints these messages even with log_to_driver=False; the queue logs each failure in one line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "Raylet is terminated|worker died or was killed|workers \\(tasks / actors\\) killed",
}
for _name, _value in RAY_SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from cluster import local_ray  # noqa: E402
from cluster.actor_pool import ActorPool, IdleActors  # noqa: E402

CHECK = 5.0  # seconds between two checks that a local Ray is alive


@dataclass(frozen=True)
class OnRay:
    """The executor on Ray.

    Attributes:
        address: of an existing cluster; None starts one on this machine.
        workers: the most workers; 0 means as many as the nodes can hold.
        env_vars: set in every worker, after the thread counts and before anything is imported there.
        working_dir: the folder that is shipped to the nodes of an existing cluster. It is not used in a job that was
            submitted through Ray's Jobs API, which has its own. Files that .gitignore names are never shipped.
        excludes: more files that are not shipped, in the syntax of .gitignore.
        budgets: how often failures are tried again.
        idle_actors: the idle actors between two maps.
    """

    address: str | None = None
    workers: int = 0
    env_vars: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    excludes: Sequence[str] = ("/outputs", "/results")
    budgets: Budgets = field(default_factory=Budgets)
    idle_actors: IdleActors = field(default_factory=IdleActors, init=False, repr=False, compare=False)

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        """As `Executor.map`; processes start at the first step of the iteration.

        They are kept for the next map of this executor and end with the executor. If a map fails or is closed, its
        processes end at once.
        """
        if not items:
            return
        self.connect()
        local_ray.require_alive()
        queue = Queue(items, self.budgets)
        size = min(len(items), self._size(resources))
        pool = ActorPool(task, resources, self.env_vars, queue, Constructions(self.budgets, size), self.idle_actors)
        try:
            checked = time.monotonic()
            while queue.unfinished:
                if time.monotonic() - checked > CHECK:
                    local_ray.require_alive()
                    checked = time.monotonic()
                outcome = pool.step()
                if outcome is not None:
                    yield outcome
                    queue.raise_if_exhausted()
                watch(pool.load)  # after the outcome, so that an item's units are never missing from both
            pool.release()
        finally:
            pool.stop()

    def connect(self) -> None:
        """Start or join the cluster, unless this process already has one."""
        if ray.is_initialized():
            return
        with local_ray.own_sigterm():
            self._start()

    def _start(self) -> None:
        if self.address is None:
            local_ray.start()
            return
        shipped = self.working_dir is not None and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
        code = {"working_dir": self.working_dir, "excludes": [*self.excludes, *NEVER_SHIPPED]} if shipped else None
        try:
            ray.init(self.address, runtime_env=code, **local_ray.QUIET)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {self.address}: start one or correct the address") from error

    def _size(self, resources: Resources) -> int:
        workers = capacity(ray.nodes(), resources)
        if self.address is None and workers == 0:
            raise UserError(
                f"a worker asks for {demand(resources)}, this machine has {holdings(ray.cluster_resources())}; "
                "lower the resources, or run on a cluster that has them"
            )
        return self.workers or max(1, workers)
