"""The same verb on Ray: one actor per worker, a queue the driver owns, one item at a time on each.

Ray restarts and retries nothing here (`max_restarts=0`, `max_task_retries=0`): its retries cannot tell a dead node from
a wrong setting. The driver replaces actors and gives their items out again, and `queue.py` counts every failure once.
"""

import logging
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.executor import ONE_CPU, Budgets, Outcome, Resources, Task, source_digest
from cluster.queue import Constructions, Lease, Queue
from cluster.room import actor_options, capacity, demand, holdings, shortage
from cluster.worker import Failure, Place, Reply, classify, where

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
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError  # noqa: E402

LOG = logging.getLogger(__name__)
# Records only pass through the object store, so a machine of our own gives it little.
OBJECT_STORE_BYTES = 100 * 2**20
TICK, REMINDER = 1.0, 30.0  # seconds: between two looks at the cluster, between two lines about waiting


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

    def map(self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU) -> Iterator[Outcome]:
        """As `Executor.map`; workers are started at the first step and gone when the iteration ends or is closed."""
        if not items:
            return
        self.connect()
        queue = Queue(items, self.budgets)
        size = min(len(items), self._size(resources))
        crew = Crew(task, resources, self.env_vars, queue, Constructions(self.budgets, size))
        try:
            while queue.unfinished:
                outcome = crew.step()
                if outcome is not None:
                    yield outcome
                    queue.raise_if_exhausted()
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
            raise ValueError(f"no Ray cluster answers at {self.address}: start one or correct the address") from error

    def _size(self, resources: Resources) -> int:
        holds = capacity(ray.nodes(), resources)
        if self.address is None and holds == 0:
            raise ValueError(
                f"a worker asks for {demand(resources)}, this machine has {holdings(ray.cluster_resources())}; "
                "lower the resources, or run on a cluster that has them"
            )
        return self.workers or max(1, holds)


@dataclass(eq=False)
class Member:
    """One actor as the driver sees it: still without a place (no host), building, or working on a lease."""

    actor: Any
    since: float
    host: str = ""
    lease: Lease | None = None


class Crew:
    """The actors of one map: as many as `constructions.workers`, less where fewer items are left."""

    def __init__(
        self,
        task: Task,
        resources: Resources,
        env_vars: Mapping[str, str],
        queue: Queue,
        constructions: Constructions,
    ) -> None:
        self._blueprint = (task.entry, pickle.dumps(task.config), where(task.package), source_digest(task.package))
        self._places = ray.remote(Place).options(**actor_options(resources, env_vars))
        self._resources, self._queue, self._constructions = resources, queue, constructions
        self._idle: list[Member] = []
        self._called: dict[Any, Member] = {}
        self._recruit_at = self._reminded = time.monotonic()

    def step(self) -> Outcome | None:
        """Give out what can be given out, wait a moment for a reply, and return the outcome it brings, if any."""
        now = time.monotonic()
        self._recruit(now)
        self._hand_out(now)
        self._remind(now)
        reference = self._wait(now)
        if reference is None:
            return None
        outcome = self._receive(reference)
        # Before the caller sees the outcome: nobody should idle while it is looked at.
        self._hand_out(time.monotonic())
        return outcome

    def dismiss(self) -> None:
        """Kill every actor; where the connection is gone Ray has done so."""
        for member in [*self._idle, *self._called.values()]:
            if ray.is_initialized():
                ray.kill(member.actor)

    def _recruit(self, now: float) -> None:
        strength = len(self._idle) + len(self._called)
        wanted = min(self._constructions.workers, self._queue.unfinished) if now >= self._recruit_at else 0
        for _ in range(wanted - strength):
            member = Member(self._places.remote(), since=now)
            self._called[member.actor.arrive.remote()] = member

    def _hand_out(self, now: float) -> None:
        while self._idle and (lease := self._queue.lease(now)) is not None:
            member = self._idle.pop()
            member.lease, member.since = lease, now
            self._called[member.actor.work.remote(lease.item, lease.attempt)] = member

    def _wait(self, now: float) -> Any | None:
        pause = min(TICK, max(0.0, self._queue.ready_at - now)) if self._idle else TICK
        if not self._called:
            time.sleep(pause)
            return None
        ready, _ = ray.wait(list(self._called), num_returns=1, timeout=pause)
        return ready[0] if ready else None

    def _receive(self, reference: Any) -> Outcome | None:
        member = self._called.pop(reference)
        reply = _reply(reference, member)
        if reply.lost:
            # Killed even if it seems dead: an unreachable actor may still compute and hold its GPU.
            ray.kill(member.actor)
        if member.lease is None:
            self._on_the_way(member, reply)
            return None
        lease, member.lease = member.lease, None
        if not reply.lost:
            self._idle.append(member)
        return self._queue.settle(lease, reply, time.monotonic())

    def _on_the_way(self, member: Member, reply: Reply) -> None:
        if reply.failure is not None:
            LOG.warning("a worker could not be built: %s", reply.message.strip().partition("\n")[0])
            ray.kill(member.actor)
            self._recruit_at = time.monotonic() + self._constructions.failed(reply)
        elif not member.host:
            member.host = reply.host
            self._called[member.actor.build.remote(*self._blueprint)] = member
        else:
            self._constructions.succeeded()
            self._idle.append(member)

    def _remind(self, now: float) -> None:
        """Say so, now and then, when workers wait for room: only the user can add nodes or ask for less."""
        waiting = [member for member in self._called.values() if not member.host and now - member.since > REMINDER]
        if not waiting or now - self._reminded < REMINDER:
            return
        self._reminded = now
        LOG.warning(shortage(len(waiting), self._resources, ray.cluster_resources(), ray.available_resources()))


def _reply(reference: Any, member: Member) -> Reply:
    """The reply of a call that has ended, made up here if the process could not send one."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Place raises nothing of its own: an item or a result did not survive pickling. The actor lives.
        return Reply(failure=classify(error.cause), message=str(error.cause), trace=str(error))
    except RayError as error:
        return Reply(
            failure=_lost_to(error),
            message=f"{type(error).__name__}: no answer from {member.host or 'its node'}",
            trace=f"{type(error).__name__}: {error}",
            seconds=time.monotonic() - member.since,
            host=member.host,
            lost=True,
        )


def _lost_to(error: RayError) -> Failure:
    if isinstance(error, OutOfMemoryError):
        return Failure.MEMORY
    # The process came up and could not import `cluster`, or its environment could not be made: waiting does not help.
    unusable = isinstance(error, RuntimeEnvSetupError) or (isinstance(error, RayActorError) and error.actor_init_failed)
    return Failure.APPLICATION if unusable else Failure.INFRASTRUCTURE
