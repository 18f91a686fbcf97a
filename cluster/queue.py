"""The driver's work queue: a pure state machine, pending -> leased -> committed | failed.

It has no clock and no executor. Its caller passes in the time (seconds of any clock that does not go back) and the
replies, so tests can try every order of events.
"""

import heapq
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.executor import Attempt, Budgets, Failure, InfrastructureExhausted, Outcome, WorkerFailed
from cluster.worker import Reply

LOG = logging.getLogger(__name__)
LONGEST_PAUSE = 30.0


def item_name(item: Any) -> str:
    """An item in a message: its text, not too long."""
    text = str(item)
    return text if len(text) <= 100 else f"{text[:100]}..."


def backoff(failures: int) -> float:
    """Seconds to wait after the n-th failure of infrastructure, n from 1: 0, 1, 2, 4, 8, 16, 30, 30, ..."""
    return 0.0 if failures <= 1 else min(LONGEST_PAUSE, 2.0 ** min(failures - 2, 30))


@dataclass(frozen=True)
class Lease:
    """One attempt at one item, which a worker must end before the time `until`."""

    index: int
    item: Any
    attempt: Attempt
    until: float = math.inf


def overdue(seconds: float, host: str) -> Reply:
    """The reply that is recorded for a worker which is killed because it did not reply in time."""
    message = (
        f"no answer from a worker on {host} in {seconds:.0f} s, so it hangs and was killed. If an attempt may take "
        "that long, raise budget.lease (seconds; 0 waits for ever)"
    )
    return Reply(failure=Failure.INFRASTRUCTURE, message=message, trace=message, seconds=seconds, host=host, lost=True)


class Queue:
    """The items of a map. `settle` returns the outcome of each exactly once, whatever the order of events.

    No item has two leases at a time.
    """

    def __init__(self, items: Sequence[Any], budgets: Budgets) -> None:
        self._items = items
        self._retries = {
            Failure.INFRASTRUCTURE: budgets.infrastructure,
            Failure.MEMORY: budgets.memory,
            Failure.APPLICATION: budgets.application,
            Failure.INPUT: 0,
        }
        self._systemic, self._patience = budgets.systemic, budgets.lease
        # (ready at, index): an untried item is ready since -infinity, so it comes before those that failed.
        self._pending = [(-math.inf, index) for index in range(len(items))]
        self._leased: dict[int, Lease] = {}
        self._failures: defaultdict[int, Counter[Failure]] = defaultdict(Counter)
        self._exhausted: list[Outcome] = []
        self._exhausted_in_a_row = 0
        self.retries: Counter[str] = Counter()  # items put back so far, by class of failure

    @property
    def unfinished(self) -> int:
        """How many items are pending or leased."""
        return len(self._pending) + len(self._leased)

    @property
    def leased(self) -> int:
        """How many items workers have now."""
        return len(self._leased)

    @property
    def pending(self) -> int:
        """How many items wait for their first or their next attempt."""
        return len(self._pending)

    @property
    def ready_at(self) -> float:
        """When the next pending item may be leased; infinity if none is pending."""
        return self._pending[0][0] if self._pending else math.inf

    def lease(self, now: float) -> Lease | None:
        """The next item that is ready, or None."""
        if self.ready_at > now:
            return None
        _, index = heapq.heappop(self._pending)
        failures = self._failures.get(index, Counter[Failure]())
        attempt = Attempt(number=1 + failures.total(), halvings=failures[Failure.MEMORY])
        self._leased[index] = Lease(index, self._items[index], attempt, until=now + self._patience)
        return self._leased[index]

    def settle(self, lease: Lease, reply: Reply, now: float) -> Outcome | None:
        """Record the reply to a lease. Returns the item's outcome, or None if the item will be tried again."""
        assert self._leased.get(lease.index) == lease, f"{lease} is settled twice or was never given out"
        del self._leased[lease.index]
        if reply.failure is not None:
            self._failures[lease.index][reply.failure] += 1
            if self._failures[lease.index][reply.failure] <= self._retries[reply.failure]:
                return self._put_back(lease, reply, reply.failure, now)
        outcome = Outcome(
            item=lease.item,
            result=reply.result,
            failure=reply.failure,
            message=reply.message,
            error=None if reply.failure is None else reply.trace,
            attempts=lease.attempt.number,
            seconds=reply.seconds,
            host=reply.host,
        )
        self._count(outcome, reply.failure)
        return outcome

    def _put_back(self, lease: Lease, reply: Reply, failure: Failure, now: float) -> None:
        self.retries[failure.value] += 1
        times = self._failures[lease.index][failure]
        pause = backoff(times) if failure is Failure.INFRASTRUCTURE else 0.0
        heapq.heappush(self._pending, (now + pause, lease.index))
        LOG.warning(
            "%s: %s failure %d, tried again up to %d times, next in %.0f s: %s",
            item_name(lease.item),
            failure.value,
            times,
            self._retries[failure],
            pause,
            reply.message.strip().partition("\n")[0],
        )

    def _count(self, outcome: Outcome, failure: Failure | None) -> None:
        if failure is Failure.INFRASTRUCTURE:
            self._exhausted.append(outcome)
            self._exhausted_in_a_row += 1
        elif failure is None:
            self._exhausted_in_a_row = 0

    def raise_if_exhausted(self) -> None:
        """Raise InfrastructureExhausted if items were given up because of it: at the end, or after many in a row."""
        if not self._exhausted or (self.unfinished and self._exhausted_in_a_row < self._systemic):
            return
        last = self._exhausted[-1]
        raise InfrastructureExhausted(
            f"{len(self._exhausted)} of {len(self._items)} items were given up because machines, processes or storage "
            f"failed too often, and {self.unfinished} were not finished; what is done stays done. Repair the cause and "
            f"run the same command again. The last was {item_name(last.item)}, at attempt {last.attempts} on "
            f"{last.host or 'a node'}: {last.message}"
        )


class Constructions:
    """Counts how many workers in a row could not be built, and decides when none can be built anywhere.

    That is so after `Budgets.systemic` failures of the application, or after `Budgets.infrastructure` failures of
    machines and storage for each worker.
    """

    def __init__(self, budgets: Budgets, workers: int) -> None:
        self._budgets, self.workers = budgets, workers
        self.succeeded()

    def until(self, now: float) -> float:
        """The time until which a construction that begins now may take."""
        return now + self._budgets.lease

    def succeeded(self) -> None:
        """Forget the failures so far, because a worker was built."""
        self._failed: list[Reply] = []
        self._lost = 0

    def failed(self, reply: Reply) -> float:
        """Count a failure. Returns the seconds to wait before the next construction.

        Raises:
            WorkerFailed: the user made a mistake (exit code 2), or `systemic` constructions in a row failed (5).
            InfrastructureExhausted: machines or storage fail before a worker is built.
        """
        if reply.failure is Failure.INPUT:
            raise WorkerFailed(reply.message, exit_code=2)
        if reply.failure is Failure.INFRASTRUCTURE:
            self._lost += 1
            if self._lost > self._budgets.infrastructure * self.workers:
                raise InfrastructureExhausted(
                    f"no worker could be built in {self._lost} attempts; what is done stays done. Repair the cause and "
                    f"run the same command again. The last, on {reply.host or 'a node'}: {reply.message}"
                )
            return backoff(math.ceil(self._lost / self.workers))
        self._failed.append(reply)
        if len(self._failed) >= self._budgets.systemic:
            first = self._failed[0]
            raise WorkerFailed(
                f"{len(self._failed)} workers in a row could not be built. The first, on {first.host or 'a node'}:\n"
                f"{first.trace}",
                exit_code=5,
            )
        return 0.0
