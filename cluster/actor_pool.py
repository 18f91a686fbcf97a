"""The actors of one map: the driver owns a queue, and every actor works on one item at a time.

Ray restarts and retries nothing here (`max_restarts=0`, `max_task_retries=0`), because its retries do not distinguish a
dead node from a wrong setting. Instead, the driver replaces actors and gives their items to others, and `queue.py`
counts every failure once.

Actors that are idle at the end of a map are kept for the next map, because starting a process and its imports takes
longer than a short stage.

Only `on_ray.py` imports this module, after it has set the variables that Ray reads when it is imported.
"""

import contextlib
import heapq
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, RuntimeEnvSetupError

from cluster.executor import Failure, Load, Outcome, Resources, Task
from cluster.local_ray import connection
from cluster.queue import Constructions, Lease, Queue, overdue
from cluster.reported_units import GROUP, ReportedUnits
from cluster.resources import actor_options, shortage
from cluster.worker import Reply, WorkerActor, blueprint, classify

LOG = logging.getLogger(__name__)
TICK = 1.0  # seconds: the longest wait for a reply
REMINDER = 30.0  # seconds between two warnings that actors wait for a node


@dataclass(eq=False)
class PooledActor:
    """The driver's record of one actor: pending (no node has room), building its worker, idle, or working on a lease.

    Attributes:
        actor: Ray's handle of the actor.
        since: when its present call began.
        until: when its present call is overdue.
        host: the machine it runs on; "" while it waits for a node.
        lease: the item that it works on; None if it does not work.
        reference: Ray's reference to the reply of its present call.
    """

    actor: Any
    since: float
    until: float = math.inf
    host: str = ""
    lease: Lease | None = None
    reference: Any = None

    @property
    def state(self) -> str:
        """One of `STATES`, for an actor that has a call."""
        if self.lease is not None:
            return "working"
        return "building" if self.host else "pending"


STATES = ("pending", "building", "working")


@dataclass
class IdleActors:
    """The idle actors of an executor, between two maps. Ray ends an actor whose handle is gone."""

    _kind: tuple[Any, ...] = ()
    _actors: list[Any] = field(default_factory=list)

    def take(self, resources: Resources, env_vars: Mapping[str, str]) -> Any:
        """An idle actor with these resources and this environment, or a new one if there is none."""
        # The actors of an earlier connection are gone.
        kind = (resources, *sorted(env_vars.items()), connection())
        if kind != self._kind:
            self._kind = kind
            self._actors.clear()
        return self._actors.pop() if self._actors else _new_actor(resources, env_vars)

    def put_back(self, actor: Any) -> None:
        """Take back an actor that `take` returned."""
        self._actors.append(actor)


class ActorPool:
    """The actors of one map: as many as `constructions.workers`, fewer where fewer items are left.

    Args:
        task: what the workers do.
        resources: what one worker owns.
        env_vars: set in every worker.
        queue: the items.
        constructions: counts the workers that could not be built.
        idle_actors: where actors are taken from; idle ones return there at the end.
    """

    def __init__(
        self,
        task: Task,
        resources: Resources,
        env_vars: Mapping[str, str],
        queue: Queue,
        constructions: Constructions,
        idle_actors: IdleActors,
    ) -> None:
        self._blueprint = blueprint(task)
        self._resources, self._env_vars, self._idle_actors = resources, env_vars, idle_actors
        self._queue, self._constructions = queue, constructions
        self._idle: list[PooledActor] = []
        self._calls: dict[int, PooledActor] = {}  # by the number of the call
        self._states = Counter[str]()  # of the actors with a call
        # Ray puts a call's number here when it ends, so the cost of a step does not grow with the number of calls.
        self._ended: SimpleQueue[int] = SimpleQueue()
        self._deadlines: list[tuple[float, int]] = []
        self._numbers = count()
        self._reported = ReportedUnits()
        self._grow_at, self._remind_at = time.monotonic(), time.monotonic() + REMINDER

    def step(self) -> Outcome | None:
        """Give ready items to idle actors, wait at most `TICK` for a reply, and return the outcome if an item ended."""
        now = time.monotonic()
        self._grow(now)
        self._dispatch(now)
        self._remind(now)
        self._reported.ask(now, ((call, a.actor) for call, a in self._calls.items() if a.lease is not None))
        late = self._overdue(now)
        call = self._wait(now) if late is None else late
        if call is None:
            return None
        outcome = self._receive(call, hangs=late is not None)
        # Now and not in the next step: no actor should be idle while the caller works with the outcome.
        self._dispatch(time.monotonic())
        return outcome

    @property
    def load(self) -> Load:
        """The load of the map now."""
        queue, workers = self._queue, {state: self._states[state] for state in STATES}
        return Load(
            running=queue.leased,
            queued=queue.pending,
            workers=workers | {"idle": len(self._idle)},
            retries=dict(queue.retries),
            units=self._reported.total,
        )

    def release(self) -> None:
        """Return the idle actors, for the next map."""
        for actor in self._idle:
            self._idle_actors.put_back(actor.actor)
        self._idle.clear()

    def stop(self) -> None:
        """Kill every actor that was not released. If the connection is closed, Ray has done this."""
        for actor in [*self._idle, *self._calls.values()]:
            if ray.is_initialized():
                ray.kill(actor.actor)

    def _grow(self, now: float) -> None:
        size = len(self._idle) + len(self._calls)
        target = min(self._constructions.workers, self._queue.unfinished) if now >= self._grow_at else 0
        for _ in range(target - size):
            actor = PooledActor(self._idle_actors.take(self._resources, self._env_vars), since=now)
            self._call(actor, actor.actor.ready.remote())

    def _dispatch(self, now: float) -> None:
        while self._idle and (lease := self._queue.lease(now)) is not None:
            actor = self._idle.pop()
            actor.lease, actor.since, actor.until = lease, now, lease.until
            self._call(actor, actor.actor.work.remote(lease.item, lease.attempt))

    def _call(self, actor: PooledActor, reference: Any) -> None:
        """Record the call that an actor has from now on."""
        call = next(self._numbers)
        self._calls[call], actor.reference = actor, reference
        self._states[actor.state] += 1
        if actor.until < math.inf:
            heapq.heappush(self._deadlines, (actor.until, call))
        reference.future().add_done_callback(lambda _: self._ended.put(call))

    def _overdue(self, now: float) -> int | None:
        """A call that is overdue and has no reply. With a reply, it is the driver that is late."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, call = heapq.heappop(self._deadlines)
            if call in self._calls and not ray.wait([self._calls[call].reference], timeout=0)[0]:
                return call
        return None

    def _wait(self, now: float) -> int | None:
        """The next call that ends within the pause; None if there is none, or if it was given up as overdue before."""
        pause = min(TICK, max(0.0, self._queue.ready_at - now)) if self._idle else TICK
        with contextlib.suppress(Empty):
            call = self._ended.get(timeout=pause)
            return call if call in self._calls else None
        return None

    def _receive(self, call: int, hangs: bool) -> Outcome | None:
        actor = self._calls.pop(call)
        self._states[actor.state] -= 1
        self._reported.forget(call)
        reply = overdue(time.monotonic() - actor.since, actor.host) if hangs else _reply(actor)
        if reply.lost:
            # An actor that seems dead may only be unreachable, and may still compute and use its GPU.
            ray.kill(actor.actor)
        if actor.lease is None:
            self._prepare(actor, reply)
            return None
        lease, actor.lease = actor.lease, None
        if not reply.lost:
            self._idle.append(actor)
        return self._queue.settle(lease, reply, time.monotonic())

    def _prepare(self, actor: PooledActor, reply: Reply) -> None:
        """The next step of an actor without a worker: it waits for a node, then builds its worker, then is idle."""
        if reply.failure is not None:
            LOG.warning("a worker could not be built: %s", reply.message.strip().partition("\n")[0])
            ray.kill(actor.actor)
            self._grow_at = time.monotonic() + self._constructions.failed(reply)
        elif not actor.host:
            actor.host, actor.since = reply.host, time.monotonic()
            actor.until = self._constructions.until(actor.since)
            self._call(actor, actor.actor.build.remote(*self._blueprint))
        else:
            self._constructions.succeeded()
            self._idle.append(actor)

    def _remind(self, now: float) -> None:
        """Warn from time to time that actors wait for a node: only the user can add nodes or lower the resources."""
        if now < self._remind_at or not self._states["pending"]:
            return
        waiting = [actor for actor in self._calls.values() if not actor.host and now - actor.since > REMINDER]
        self._remind_at = now + (REMINDER if waiting else TICK)
        if waiting:
            LOG.warning(shortage(len(waiting), self._resources, ray.cluster_resources(), ray.available_resources()))


def _reply(actor: PooledActor) -> Reply:
    """The reply of a call that has ended, or a reply made from Ray's error if the process sent none."""
    try:
        return ray.get(actor.reference)
    except RayTaskError as error:
        # WorkerActor itself raises nothing, so an item or a result could not be pickled. The actor is alive.
        return Reply(failure=classify(error.cause), message=str(error.cause), trace=str(error))
    except RayError as error:
        return Reply(
            failure=_failure_of_lost(error),
            message=f"{type(error).__name__}: no answer from {actor.host or 'its node'}",
            trace=f"{type(error).__name__}: {error}",
            seconds=time.monotonic() - actor.since,
            host=actor.host,
            lost=True,
        )


def _failure_of_lost(error: RayError) -> Failure:
    if isinstance(error, OutOfMemoryError):
        return Failure.MEMORY
    # Waiting does not help if the process cannot import `cluster`, or its environment cannot be made.
    unusable = isinstance(error, RuntimeEnvSetupError) or (isinstance(error, RayActorError) and error.actor_init_failed)
    return Failure.APPLICATION if unusable else Failure.INFRASTRUCTURE


def _new_actor(resources: Resources, env_vars: Mapping[str, str]) -> Any:
    # `units` has a group of its own. Then Ray runs all other methods of the actor in one thread, always the same.
    groups: Any = {"concurrency_groups": {GROUP: 1}}
    return ray.remote(**groups)(WorkerActor).options(**actor_options(resources, env_vars)).remote()
