"""The numbers of a server for Prometheus; docs/serving.md has the table.

No metric has a label for questions or samples, so that a server has a few dozen time series.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

PREFIX = "concept_trak"


class ServerMeter:
    """Counts what a server does. Several threads may count.

    Args:
        audit: the name of the audit that is asked.
        waiting, running: return numbers of questions.
    """

    def __init__(self, audit: str, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._questions = self._counter("questions", "Questions that ended: done or failed.", "state")
        self._seconds = self._counter("question_seconds", "Seconds that questions took, without waiting.")
        self._requests = self._counter("requests", "Requests by the status of the answer.", "status")
        for state in ("done", "failed"):
            self._questions.labels(state)
        self._gauge("question_queue_depth", "Questions that wait.").set_function(waiting)
        self._gauge("questions_running", "Questions that are computed.").set_function(running)
        self._gauge("audit_info", "1 for the audit that is asked.", "audit").labels(audit).set(1)

    def add_question(self, failed: bool, seconds: float) -> None:
        """Count a question that has ended.

        Args:
            failed: whether it has no answer.
            seconds: how long it was computed.
        """
        self._questions.labels("failed" if failed else "done").inc()
        self._seconds.inc(seconds)

    def add_request(self, status: int) -> None:
        """Count a request that is answered with this status."""
        self._requests.labels(str(status)).inc()

    def text(self) -> bytes:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self._registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", meaning, labels, registry=self._registry)
