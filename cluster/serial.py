"""The executor without Ray: it does one item after the other in this process."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cluster.executor import ONE_CPU, Budgets, Load, Outcome, Resources, Task, Watch, Worker, unwatched
from cluster.queue import Constructions, Lease, Queue
from cluster.worker import Reply, answer


@dataclass(frozen=True)
class Serial:
    """The executor in this process.

    `Resources` have no effect, because the worker has the whole machine. `Budgets.lease` has no effect, because nothing
    can stop an item that hangs. `watch` is called only when an item begins and when its worker reports.

    Attributes:
        budgets: how often failures are tried again.
        sleep: waits for some seconds between two attempts.
        clock: the time, in seconds.
    """

    budgets: Budgets = field(default_factory=Budgets)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        """As `Executor.map`; the worker is built at the first step of the iteration."""
        queue = Queue(items, self.budgets)
        worker = self._build(task) if items else None
        while queue.unfinished:
            assert worker is not None
            lease = queue.lease(self.clock())
            if lease is None:
                self.sleep(max(0.0, queue.ready_at - self.clock()))
                continue
            reply = _attempt(worker, lease, queue, watch)
            outcome = queue.settle(lease, reply, self.clock())
            if outcome is not None:
                yield outcome
                queue.raise_if_exhausted()

    def _build(self, task: Task) -> Worker:
        constructions = Constructions(self.budgets, workers=1)
        while True:
            reply = answer(partial(task.worker, task.config))
            if reply.failure is None:
                assert reply.result is not None
                return reply.result
            self.sleep(constructions.failed(reply))


def _attempt(worker: Worker, lease: Lease, queue: Queue, watch: Watch) -> Reply:
    """One attempt at an item. An error of `watch` is not a failure of the worker: it is raised after the attempt."""
    units, errors = 0.0, list[Exception]()

    def load(units: float) -> Load:
        return Load(
            running=queue.leased,
            queued=queue.pending,
            workers={"working": queue.leased},
            retries=dict(queue.retries),
            units=units,
        )

    def report(finished: float) -> None:
        nonlocal units
        units += finished
        try:
            watch(load(units))
        except Exception as error:
            errors.append(error)

    report(0.0)
    reply = Reply() if errors else answer(partial(worker, lease.item, replace(lease.attempt, report=report)))
    if errors:
        raise errors[0]
    return reply
