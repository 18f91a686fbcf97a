"""A server of several processes: one has the model, others a share of the features each, and one takes the requests.

    HTTP -> front (queue, pages, files) -> model: phi_q [k]
                                        -> share 0 ... n-1: the ends of the scores of its own parts -> merged

Each process builds one worker, which answers tasks with results, as in an audit. The front has K and the factors of
K + lambda I, and neither the model nor features. `cluster/on_serve.py` starts the processes and carries the tasks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from aiohttp import web

from concept_trak import UserError
from concept_trak.audit.answer_layers import AnswerSplit, split_answer
from concept_trak.audit.finished_audit import FinishedAudit, open_audit
from concept_trak.audit.kept_features import KeptFeatures
from concept_trak.audit.layer_scores import Parts
from concept_trak.audit.query_features import QueryResult, QueryTask
from concept_trak.audit.query_model import LocalQueryModel, OpenedQueries
from concept_trak.audit.questions import MovedModel, Questions
from concept_trak.audit.score import ScoreResult
from concept_trak.audit.shared_pass import scan
from concept_trak.audit.worker import StoreWorker
from concept_trak.config import AuditConfig, WorkerSettings, absolute, build
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record
from concept_trak.store.store import Store
from serving.archive import audit_digest
from serving.listen import ServeConfig, own_token, served

MODEL, FRONT = "model", "front"


class ServeReply(Protocol):
    """What came of a task: its result, or the class of its failure (input, infrastructure, memory or application)."""

    @property
    def result(self) -> Any: ...
    @property
    def failure(self) -> Any: ...
    @property
    def message(self) -> str: ...
    @property
    def trace(self) -> str: ...


Send = Callable[[str, Any], ServeReply]
"""Sends a task to the process of a name, and waits for its reply. Threads may call it at the same time."""


@dataclass(frozen=True)
class ProcessPlan:
    """One process: the class of its worker, the worker's settings, and the cores, GPUs and memory (bytes) it owns."""

    name: str
    worker: Callable[..., Any]
    settings: Any
    cpus: float = 0.0
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True)
class ServePlan:
    """All processes of a server, and where it listens. `front.worker(settings)` makes an aiohttp application.

    Attributes:
        address: of a running Ray cluster; None starts Ray on this machine.
    """

    processes: tuple[ProcessPlan, ...]
    front: ProcessPlan
    host: str
    port: int
    address: str | None


@dataclass(frozen=True)
class ReplicaSettings:
    """What a process needs to know: the server's settings, the digest of the audit, and which share is its own."""

    config: ServeConfig
    audit: str
    share: int = 0
    token: str = field(default="", repr=False)

    def results(self) -> FinishedAudit:
        """The audit.

        Raises:
            UserError: it is not the one that the server was started for.
        """
        results = open_audit(self.config.store, self.config.audit)
        if audit_digest(results) != self.audit:
            raise UserError(f"audit {self.config.audit} was replaced by another one; start the server again")
        return results

    @property
    def worker(self) -> WorkerSettings:
        """What a process may use of its machine."""
        cluster = self.config.cluster
        return WorkerSettings(cpus=cluster.cpus, gpus=int(cluster.gpus > 0), memory=cluster.memory)

    def questions(self) -> Questions:
        """The audit that is asked, whose model is not loaded yet."""
        return Questions(self.results(), self.config.model, self.worker)


@dataclass(frozen=True)
class ScanTask:
    """Score the samples of a share by some queries of one method."""

    method: str
    queries: tuple[StoredQuery, ...]
    top: int


class ModelReplica:
    """The process with the model: opens the queries of a configuration, and computes the features of a query."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._model = LocalQueryModel(settings.questions().work)
        self._model.load()

    def __call__(self, task: AuditConfig | QueryTask, attempt: object) -> OpenedQueries | QueryResult:
        return self._model.query(task) if isinstance(task, QueryTask) else self._model.open(task)


class ShareReplica:
    """A process with a share of the parts of each method: returns the ends of their scores, and splits scores."""

    def __init__(self, settings: ReplicaSettings) -> None:
        questions, config = settings.questions(), settings.config
        self._records = {
            method: shares(records, config.replicas)[settings.share] for method, records in questions.records.items()
        }
        self._of = {method: sum(r.rows for r in records) for method, records in questions.records.items()}
        parts = {(r.fingerprint, r.shard): r.bytes for records in self._records.values() for r in records}
        self._features = KeptFeatures(StoreWorker(questions.work), config.keep, sum(parts.values()))

    def __call__(self, task: ScanTask | AnswerSplit, attempt: object) -> tuple[ScoreResult, ...] | Parts:
        if isinstance(task, AnswerSplit):
            return split_answer(self._features, self._records[task.method], task)
        records, of = self._records[task.method], self._of[task.method]
        return tuple(scan(self._features, records, task.method, task.queries, task.top, of))


def shares(records: Sequence[Record], count: int) -> list[list[Record]]:
    """The parts divided into consecutive shares of about equal size; each part is in one share, by its middle byte."""
    total, before, divided = sum(record.bytes for record in records), 0, [list[Record]() for _ in range(count)]
    for record in records:
        middle = before + record.bytes / 2
        divided[min(count - 1, int(count * middle / max(1, total)))].append(record)
        before += record.bytes
    return divided


def share_name(share: int) -> str:
    """The name of the process with a share."""
    return f"share-{share}"


class ReplicatedQuestions(Questions):
    """As `Questions`, with the model and the features in other processes.

    Args:
        settings: of the front.
        send: brings tasks to the other processes.
    """

    def __init__(self, settings: ReplicaSettings, send: Send) -> None:
        super().__init__(settings.results(), settings.config.model, settings.worker)
        self._send, self._shares = send, settings.config.replicas
        self.model = RemoteQueryModel(send)

    def score(self, method: str, queries: Sequence[StoredQuery], top: int) -> Iterator[ScoreResult]:
        """Yield the ends of all shares, which are scanned at the same time."""
        for results in self._from_shares(ScanTask(method, tuple(queries), top)):
            yield from results

    def split(self, task: AnswerSplit) -> Parts:
        """Scores of one method, split by layer; each share splits those of its own samples."""
        return {key: parts for share in self._from_shares(task) for key, parts in share.items()}

    def _from_shares(self, task: ScanTask | AnswerSplit) -> Iterator[Any]:
        """The results of all shares, which have the task at the same time."""
        with ThreadPoolExecutor(self._shares) as pool:
            yield from pool.map(lambda i: result_of(self._send(share_name(i), task)), range(self._shares))


class RemoteQueryModel:
    """The model in another process."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def load(self) -> None:
        """The model is loaded when its process starts."""

    def open(self, config: AuditConfig) -> OpenedQueries:
        return result_of(self._send(MODEL, config))

    def query(self, task: QueryTask) -> QueryResult:
        return result_of(self._send(MODEL, task))


def result_of(reply: ServeReply) -> Any:
    """The result of a reply; a failure is raised as the class that it has in one process."""
    if reply.failure is None:
        return reply.result
    match reply.failure.value:
        case "input":
            raise UserError(reply.message)
        case "infrastructure":
            raise OSError(reply.message)
    raise RuntimeError(reply.trace or reply.message)


class FrontReplica:
    """The process that takes the requests: makes the application, once it is told how to reach the others."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings

    def __call__(self, send: Send, attempt: object) -> web.Application:
        own = self._settings
        return served(own.config, ReplicatedQuestions(own, send), own.token)


def serve_plan(values: ServeConfig | Mapping[str, Any]) -> ServePlan:
    """The processes of a server, after the checks that need no model.

    Args:
        values: the settings; of a configuration file of Ray Serve, which has them as a mapping.

    Raises:
        UserError: a setting, the audit or the token is wrong.
    """
    config = values if isinstance(values, ServeConfig) else build(ServeConfig, dict(values))
    cluster = config.cluster
    config = replace(config, store=absolute(config.store), questions=config.questions and absolute(config.questions))
    if not config.replicas:
        raise UserError("replicas=0 is a server of one process; for several, set replicas= to the number of shares")
    for key, value in (("store", config.store), ("questions", config.questions or config.store)):
        _require_reachable(key, value, config)
    if not config.audit:
        raise UserError("which audit is asked? audit=AUDIT; `python -m jobs.status` lists them")
    token = own_token("127.0.0.1" if config.host == "localhost" else config.host)
    questions = Questions(open_audit(config.store, config.audit), config.model)
    model = {f.name: getattr(questions.config.model, f.name) for f in fields(MovedModel)}
    own = ReplicaSettings(replace(config, model=MovedModel(**model)), audit_digest(questions.results))
    share = ProcessPlan(name=share_name(0), worker=ShareReplica, settings=own, cpus=cluster.cpus, memory=cluster.memory)
    return ServePlan(
        processes=(
            replace(share, name=MODEL, worker=ModelReplica, gpus=cluster.gpus),
            *(replace(share, name=share_name(i), settings=replace(own, share=i)) for i in range(config.replicas)),
        ),
        front=ProcessPlan(name=FRONT, worker=FrontReplica, settings=replace(own, token=token)),
        host=config.host,
        port=config.port,
        address=cluster.address if cluster.kind == "ray" else None,
    )


def _require_reachable(key: str, value: str, config: ServeConfig) -> None:
    scheme = Store(value).scheme
    if scheme == "memory":
        raise UserError(f"{key}={value!r} is the memory of one process; choose a folder, an object store or replicas=0")
    if scheme == "file" and config.cluster.kind == "ray" and not config.cluster.shared_store:
        raise UserError(
            f"{key}={value!r} is a folder: if every node sees the same one, set cluster.shared_store=true; else use an "
            "object store such as s3://bucket/prefix"
        )
