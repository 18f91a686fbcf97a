"""The numbers of a server for Prometheus, in its text format 0.0.4; docs/serving.md has the table.

No metric has a label for questions or samples, so that a server has a few dozen time series.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MEDIA_TYPE = "text/plain; version=0.0.4"
Values = Mapping[tuple[str, ...], float]
"""The values of a metric by those of its labels."""


@dataclass(frozen=True)
class ServerMetric:
    """One metric: its kind (counter or gauge), its meaning with the unit, and the names of its labels."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()

    def lines(self, values: Values) -> Iterable[str]:
        """The metric in text."""
        yield f"# HELP {self.name} {self.meaning}"
        yield f"# TYPE {self.name} {self.kind}"
        for key, value in sorted(values.items()):
            labels = ",".join(f'{name}="{_quoted(text)}"' for name, text in zip(self.labels, key, strict=True))
            yield f"{self.name}{{{labels}}} {value:.17g}" if labels else f"{self.name} {value:.17g}"


QUESTIONS = ServerMetric("concept_trak_questions_total", "counter", "Questions that ended: done or failed.", ("state",))
SECONDS = ServerMetric(
    "concept_trak_question_seconds_total", "counter", "Seconds that questions took, without those that they waited."
)
QUEUE = ServerMetric("concept_trak_question_queue_depth", "gauge", "Questions that wait.")
RUNNING = ServerMetric("concept_trak_questions_running", "gauge", "Questions that are computed: 0 or 1.")
REQUESTS = ServerMetric("concept_trak_requests_total", "counter", "Requests by status of the answer.", ("status",))
MEMORY = ServerMetric("process_resident_memory_bytes", "gauge", "Resident memory of the process, in bytes.")
AUDIT = ServerMetric("concept_trak_audit_info", "gauge", "1 for the audit that is asked.", ("audit",))
SERVER_METRICS = (QUESTIONS, SECONDS, QUEUE, RUNNING, REQUESTS, MEMORY, AUDIT)


class ServerMeter:
    """Counts what a server does. Several threads may count."""

    def __init__(self) -> None:
        self._lock, self._seconds = threading.Lock(), 0.0
        self._questions, self._requests = Counter[str](done=0, failed=0), Counter[int]()

    def add_question(self, failed: bool, seconds: float) -> None:
        """Count a question that has ended.

        Args:
            failed: whether it has no answer.
            seconds: how long it was computed.
        """
        with self._lock:
            self._questions["failed" if failed else "done"] += 1
            self._seconds += seconds

    def add_request(self, status: int) -> None:
        """Count a request that is answered with this status."""
        with self._lock:
            self._requests[status] += 1

    def text(self, audit: str, waiting: int, running: int) -> str:
        """All metrics, as Prometheus reads them.

        Args:
            audit: the name of the audit that is asked.
            waiting, running: numbers of questions.
        """
        with self._lock:
            questions, requests, seconds = dict(self._questions), dict(self._requests), self._seconds
        values: dict[ServerMetric, Values] = {
            QUESTIONS: {(state,): count for state, count in questions.items()},
            SECONDS: {(): seconds},
            QUEUE: {(): waiting},
            RUNNING: {(): running},
            REQUESTS: {(str(status),): count for status, count in requests.items()},
            MEMORY: {(): memory} if (memory := resident_bytes()) else {},
            AUDIT: {(audit,): 1},
        }
        return "".join(f"{line}\n" for metric in SERVER_METRICS for line in metric.lines(values[metric]))


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system has no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
