"""The same verb on Ray: a cluster of our own or one that stands, and on it the crew that does the items of a map."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.executor import ONE_CPU, Budgets, Outcome, Resources, Task, UserError, Watch, unwatched
from cluster.queue import Constructions, Queue
from cluster.resources import capacity, demand, holdings

# Set before Ray is imported, because Ray reads them then; a value of the user's own stays.
RAY_SETTINGS = {
    # The coming default: Ray leaves the GPU variables of a worker without GPUs alone. `actor_options` hides the GPUs.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nothing is reported to anyone, and Ray does not print that it would be.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints these on the driver's terminal even with log_to_driver=False; the queue logs the same in one line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed|workers \\(tasks / actors\\) killed",
}
for _name, _value in RAY_SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from cluster.actor_pool import Crew, Reserve  # noqa: E402

# Records only pass through the object store, so a machine of our own gives it little.
OBJECT_STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class OnRay:
    """The executor on Ray: a cluster of its own on this machine, or the existing one at `address`.

    workers: how many at most; 0 means as many as the cluster's nodes can hold.
    env_vars: set in every worker, after the thread counts and before anything is imported there.
    working_dir, excludes: the folder shipped to the nodes of an existing cluster; a job submitted through Ray's Jobs
    API brings its own, and then this one is not used. What .gitignore names is never shipped.
    """

    address: str | None = None
    workers: int = 0
    env_vars: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    excludes: Sequence[str] = ("/outputs", "/results")
    budgets: Budgets = field(default_factory=Budgets)
    reserve: Reserve = field(default_factory=Reserve, init=False, repr=False, compare=False)

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        """As `Executor.map`; processes are started at the first step.

        They are kept for this executor's next map and end with it; those of a map that fails or is closed end at once.
        """
        if not items:
            return
        self.connect()
        queue = Queue(items, self.budgets)
        size = min(len(items), self._size(resources))
        crew = Crew(task, resources, self.env_vars, queue, Constructions(self.budgets, size), self.reserve)
        try:
            while queue.unfinished:
                outcome = crew.step()
                watch(crew.load)
                if outcome is not None:
                    yield outcome
                    queue.raise_if_exhausted()
            crew.rest()
        finally:
            crew.dismiss()

    def connect(self) -> None:
        """Start or join the cluster, unless this process already has one."""
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            # "local" and not None: RAY_ADDRESS must not turn a run on this machine into one somewhere else.
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
            return
        shipped = self.working_dir is not None and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ
        code = {"working_dir": self.working_dir, "excludes": list(self.excludes)} if shipped else None
        try:
            ray.init(self.address, runtime_env=code, **quiet)
        except ConnectionError as error:
            raise UserError(f"no Ray cluster answers at {self.address}: start one or correct the address") from error

    def _size(self, resources: Resources) -> int:
        holds = capacity(ray.nodes(), resources)
        if self.address is None and holds == 0:
            raise UserError(
                f"a worker asks for {demand(resources)}, this machine has {holdings(ray.cluster_resources())}; "
                "lower the resources, or run on a cluster that has them"
            )
        return self.workers or max(1, holds)
