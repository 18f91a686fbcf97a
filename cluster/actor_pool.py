"""The actors of one map: one per worker, a queue the driver owns, one item at a time on each.

Ray restarts and retries nothing here (`max_restarts=0`, `max_task_retries=0`): its retries cannot tell a dead node from
a wrong setting. The driver replaces actors and gives their items out again, and `queue.py` counts every failure once.
Imported by `on_ray.py` alone, which sets before what Ray reads from the environment when it is imported.

Processes between two maps: to start one and to import in it what a worker needs takes longer than a short stage.

Imported by `on_ray.py` and `crew.py`, after what Ray reads from the environment is set.
"""

import logging
import math
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError

from cluster.executor import Failure, Load, Outcome, Resources, Task, package_of, source_digest
from cluster.queue import Constructions, Lease, Queue, overdue
from cluster.resources import actor_options, shortage
from cluster.worker import Place, Reply, classify, where

LOG = logging.getLogger(__name__)
TICK, REMINDER = 1.0, 30.0  # seconds: between two looks at the cluster, between two lines about waiting


@dataclass(eq=False)
class Member:
    """One actor as the driver sees it: still without a place (no host), building, or working on a lease.

    What it is called for began at `since`; who has not answered by `until` hangs.
    """

    actor: Any
    since: float
    until: float = math.inf
    host: str = ""
    lease: Lease | None = None


@dataclass
class Reserve:
    """The actors that one executor's last map left idle, for its next one. Ray ends them when nobody holds them."""

    _kind: tuple[Any, ...] = ()
    _actors: list[Any] = field(default_factory=list)

    def take(self, resources: Resources, env_vars: Mapping[str, str]) -> Any:
        """An actor with these resources and environment: one that is idle, else a new one."""
        kind = (resources, *sorted(env_vars.items()), _session())
        if kind != self._kind:
            self._kind = kind
            self._actors.clear()
        return self._actors.pop() if self._actors else _new(resources, env_vars)

    def keep(self, actor: Any) -> None:
        """Hold an actor that was taken last under the same resources and environment, and has nothing to do."""
        self._actors.append(actor)


class Crew:
    """The actors of one map: as many as `constructions.workers`, less where fewer items are left."""

    def __init__(
        self,
        task: Task,
        resources: Resources,
        env_vars: Mapping[str, str],
        queue: Queue,
        constructions: Constructions,
        reserve: Reserve,
    ) -> None:
        package = package_of(task.entry)
        self._blueprint = (task.entry, pickle.dumps(task.config), where(package), source_digest(package))
        self._resources, self._env_vars, self._reserve = resources, env_vars, reserve
        self._queue, self._constructions = queue, constructions
        self._idle: list[Member] = []
        self._called: dict[Any, Member] = {}
        self._recruit_at = self._reminded = time.monotonic()

    def step(self) -> Outcome | None:
        """Give out what can be given out, wait a moment for a reply, and return the outcome it brings, if any."""
        now = time.monotonic()
        self._recruit(now)
        self._hand_out(now)
        self._remind(now)
        hung = self._hung(now)
        reference = self._wait(now) if hung is None else hung
        if reference is None:
            return None
        outcome = self._receive(reference, hung is not None)
        # Before the caller sees the outcome: nobody should idle while it is looked at.
        self._hand_out(time.monotonic())
        return outcome

    @property
    def load(self) -> Load:
        """What the map is at now."""
        called = self._called.values()
        waiting = sum(not member.host for member in called)
        working = sum(member.lease is not None for member in called)
        workers = {"waiting": waiting, "building": len(called) - waiting - working, "working": working}
        queue = self._queue
        return Load(queue.leased, queue.pending, workers | {"idle": len(self._idle)}, dict(queue.retries))

    def rest(self) -> None:
        """Leave those that are idle to the next map."""
        for member in self._idle:
            self._reserve.keep(member.actor)
        self._idle.clear()

    def dismiss(self) -> None:
        """Kill every actor that does not rest; where the connection is gone Ray has done so."""
        for member in [*self._idle, *self._called.values()]:
            if ray.is_initialized():
                ray.kill(member.actor)

    def _recruit(self, now: float) -> None:
        strength = len(self._idle) + len(self._called)
        wanted = min(self._constructions.workers, self._queue.unfinished) if now >= self._recruit_at else 0
        for _ in range(wanted - strength):
            member = Member(self._reserve.take(self._resources, self._env_vars), since=now)
            self._called[member.actor.arrive.remote()] = member

    def _hand_out(self, now: float) -> None:
        while self._idle and (lease := self._queue.lease(now)) is not None:
            member = self._idle.pop()
            member.lease, member.since, member.until = lease, now, lease.until
            self._called[member.actor.work.remote(lease.item, lease.attempt)] = member

    def _hung(self, now: float) -> Any | None:
        """A call that is over its time. Not one whose answer is there: the driver itself may have been away."""
        late = [reference for reference, member in self._called.items() if member.until <= now]
        _, unanswered = ray.wait(late, num_returns=len(late), timeout=0) if late else ([], [])
        return unanswered[0] if unanswered else None

    def _wait(self, now: float) -> Any | None:
        pause = min(TICK, max(0.0, self._queue.ready_at - now)) if self._idle else TICK
        if not self._called:
            time.sleep(pause)
            return None
        ready, _ = ray.wait(list(self._called), num_returns=1, timeout=pause)
        return ready[0] if ready else None

    def _receive(self, reference: Any, hung: bool) -> Outcome | None:
        member = self._called.pop(reference)
        reply = overdue(time.monotonic() - member.since, member.host) if hung else _reply(reference, member)
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
            member.host, member.since = reply.host, time.monotonic()
            member.until = self._constructions.until(member.since)
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


def _new(resources: Resources, env_vars: Mapping[str, str]) -> Any:
    return ray.remote(Place).options(**actor_options(resources, env_vars)).remote()


def _session() -> str:
    """This process's connection: actors of one before it are gone."""
    return ray.get_runtime_context().get_worker_id()
