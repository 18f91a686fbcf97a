"""A cluster and its storage as formulas: what the driver does is real, what machines and disks do is simulated.

Real: listing, planning, records, the tree of Grams, the queue, progress, tally, tables, page, manifest, diff and gc.
Simulated: the file system (a table of names; parts and Grams are sizes without bytes), and 1,000 workers on virtual
time that fail at 0.1 %, whose results are made by a formula and not by a model.
"""

import gc
import hashlib
import heapq
import math
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, ClassVar

import fsspec
import numpy as np
import torch
from fsspec.spec import AbstractFileSystem

from cluster.executor import ONE_CPU, Budgets, Failure, Load, Outcome, Resources, Task, Watch, unwatched
from cluster.queue import Lease, Queue
from cluster.worker import Reply
from concept_trak.attribution.damping import DampingChoice
from concept_trak.attribution.ranking import BINS
from concept_trak.audit.aggregate import KINDS, AggregateResult, AggregateTask
from concept_trak.audit.featurize import FeaturizeResult, FeaturizeTask
from concept_trak.audit.gram import GramResult, GramTask, SolveResult, SolveTask
from concept_trak.audit.index import IndexResult, IndexSettings, IndexTask
from concept_trak.audit.query_features import MethodQuery, QueryResult, QueryTask
from concept_trak.audit.rejects import FILE as REJECTS
from concept_trak.audit.rejects import RejectsResult, RejectsTask
from concept_trak.audit.score import ColumnEnds, ScoreResult, ScoreTask
from concept_trak.audit.shown_samples import ShownSample, ShowResult, ShowTask
from concept_trak.audit.worker import Work
from concept_trak.data.image import to_png
from concept_trak.data.index import SourceFacts
from concept_trak.store.audit_files import ListedFile
from concept_trak.store.identity import FeatureSet, encode_json
from concept_trak.store.manifest import gram_file, groups_file, plain_column, sums_file
from concept_trak.store.records import Record

PAGE = 1000  # names in one answer to a listing
K = 8  # numbers of a query: what the driver passes on does not depend on it but for its size
FEATURE_BYTES = 4096 * 2  # of one sample on storage, at k = 4096 in float16
WORKERS, FAILING = 1000, 0.001
PICTURE = to_png(torch.zeros(3, 8, 8))
DAMPING = DampingChoice(100.0)


@dataclass
class Ledger:
    """What the driver used, by stage: seconds of CPU, and requests by their kind. Workers have a stage of their own."""

    seconds: Counter[str] = field(default_factory=Counter)
    requests: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    stage: str = "start"
    since: float = field(default_factory=time.process_time)
    collecting: str = ""

    def restart(self) -> None:
        """Nothing is counted yet."""
        self.seconds.clear()
        self.requests.clear()
        self.stage, self.since = "start", time.process_time()

    def enter(self, stage: str) -> str:
        """Account what follows to another stage; returns the one before."""
        now, before = time.process_time(), self.stage
        self.seconds[before] += now - self.since
        self.stage, self.since = stage, now
        return before

    @contextmanager
    def within(self, stage: str) -> Iterator[None]:
        before = self.enter(stage)
        try:
            yield
        finally:
            self.enter(before)

    def collect(self, phase: str, details: dict[str, int]) -> None:
        """Account Python's full collections of garbage by themselves: they cost as much as everything that is in
        memory, and come in whatever stage."""
        if details["generation"] == 2 and self.stage not in ("start", "workers", "end"):
            before = self.enter(COLLECTOR if phase == "start" else self.collecting)
            self.collecting = before if phase == "start" else ""

    def request(self, kind: str, number: int = 1) -> None:
        self.requests[self.stage][kind] += number


COLLECTOR = "collections of garbage"
LEDGER = Ledger()


@dataclass(frozen=True, slots=True)
class Written:
    """When a file was written: its number, in place of a time."""

    number: int

    def timestamp(self) -> float:
        return float(self.number)


class SimulatedFiles(AbstractFileSystem):
    """Names with their bytes, or with a size alone; every request is counted. Listings come in pages."""

    protocol = "simulated"
    folders: ClassVar[dict[str, dict[str, bytes | int]]] = {}
    writes: ClassVar[Iterator[int]] = count()
    written: ClassVar[dict[str, int]] = {}

    @classmethod
    def put(cls, path: str, content: bytes | int) -> None:
        folder, _, name = path.rpartition("/")
        cls.folders.setdefault(folder, {})[name] = content
        cls.written[path] = next(cls.writes)

    @classmethod
    def content(cls, path: str) -> bytes | int:
        folder, _, name = path.rpartition("/")
        try:
            return cls.folders[folder][name]
        except KeyError:
            raise FileNotFoundError(path) from None

    def cat_file(self, path, start=None, end=None, **kwargs):
        LEDGER.request("read")
        data = self.content(self._strip_protocol(path))
        assert isinstance(data, bytes), f"the driver reads {path}, which only workers may"
        return data[slice(start, end)]

    def info(self, path, **kwargs):
        LEDGER.request("look up")
        path = self._strip_protocol(path)
        try:
            return self._entry(path, self.content(path))
        except FileNotFoundError:
            if any(folder == path or folder.startswith(f"{path}/") for folder in self.folders):
                return {"name": path, "size": 0, "type": "directory"}
            raise

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **kwargs):
        path = self._strip_protocol(path)
        below = [f for f in self.folders if f == path or f.startswith(f"{path}/") or not path]
        found = {f"{f}/{n}": content for f in sorted(below) for n, content in sorted(self.folders[f].items())}
        LEDGER.request("page of a listing", max(1, math.ceil(len(found) / PAGE)))
        return {name: self._entry(name, content) for name, content in found.items()} if detail else list(found)

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        inner = {f[len(path) + 1 :].partition("/")[0] for f, names in self.folders.items()
                 if f.startswith(f"{path}/") and names}  # fmt: skip
        files = self.folders.get(path, {})
        LEDGER.request("page of a listing", max(1, math.ceil((len(inner) + len(files)) / PAGE)))
        entries = [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in inner]
        entries += [self._entry(f"{path}/{name}", content) for name, content in files.items()]
        return entries if detail else [entry["name"] for entry in entries]

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        LEDGER.request("write")
        path = self._strip_protocol(path)
        folder, _, name = path.rpartition("/")
        if mode == "create" and name in self.folders.get(folder, {}):
            raise FileExistsError(path)
        self.put(path, bytes(value))

    def rm_file(self, path):
        LEDGER.request("delete")
        folder, _, name = self._strip_protocol(path).rpartition("/")
        if self.folders.get(folder, {}).pop(name, None) is None:
            raise FileNotFoundError(path)

    def _entry(self, path: str, content: bytes | int) -> dict[str, Any]:
        size = content if isinstance(content, int) else len(content)
        number = self.written[path]
        return {"name": path, "size": size, "type": "file", "ETag": f"{number:032x}", "LastModified": Written(number)}


def begin() -> None:
    """Empty storage, and nothing counted."""
    if LEDGER.collect not in gc.callbacks:
        gc.callbacks.append(LEDGER.collect)
    fsspec.register_implementation("simulated", SimulatedFiles, clobber=True)
    SimulatedFiles.folders.clear()
    SimulatedFiles.written.clear()
    LEDGER.restart()


@dataclass(frozen=True)
class SimulatedCluster:
    """The executor on virtual time: the real queue, `workers` processes that fail at `failing`, and no machine.

    `answers` make the results, by the name of the worker class.
    """

    answers: "dict[str, Callable[[Work, Any], Any]]"
    workers: int = WORKERS
    failing: float = FAILING
    budgets: Budgets = field(default_factory=Budgets)

    def map(
        self, task: Task, items: Sequence[Any], resources: Resources = ONE_CPU, watch: Watch = unwatched
    ) -> Iterator[Outcome]:
        """As `Executor.map`. A worker that fails takes its item with it and is replaced at once."""
        answer = self.answers[getattr(task.worker, "__name__", "")]
        queue, now, draw, numbers = Queue(items, self.budgets), 0.0, random.Random(0), count()
        running: list[tuple[float, int, Lease]] = []
        idle = min(self.workers, len(items))
        while queue.unfinished:
            while idle and (lease := queue.lease(now)) is not None:
                heapq.heappush(running, (now + draw.uniform(1, 2), next(numbers), lease))
                idle -= 1
            if not running:
                now = queue.ready_at
                continue
            now, _, lease = heapq.heappop(running)
            idle += 1
            with LEDGER.within("workers"):
                lost = draw.random() < self.failing
                reply = LOST if lost else Reply(answer(task.config, lease.item), seconds=1.5, host="node")  # type: ignore[arg-type]
            outcome = queue.settle(lease, reply, now)
            watch(Load(queue.leased, queue.pending, {"working": queue.leased}, dict(queue.retries)))
            if outcome is not None:
                yield outcome
                queue.raise_if_exhausted()


LOST = Reply(failure=Failure.INFRASTRUCTURE, message="the node was preempted", trace="", host="node", lost=True)


class Answers:
    """What simulated workers leave on the simulated storage, and what they return."""

    def __init__(self, root: str, rows: int) -> None:
        self.root, self.rows = root, rows

    def of_every_worker(self) -> dict[str, Callable[[Work, Any], Any]]:
        """By the name of the worker class."""
        return {
            "IndexWorker": self.index,
            "FeaturizeWorker": self.featurize, "GramWorker": self.gram, "QueryWorker": self.query,
            "SolveWorker": self.solve, "ScoreWorker": self.score, "AggregateWorker": self.aggregate,
            "ShowWorker": self.show, "RejectsWorker": self.rejects,
        }  # fmt: skip

    def put(self, name: str, content: bytes | int) -> None:
        SimulatedFiles.put(f"{self.root}/{name}", content)

    def index(self, settings: IndexSettings, task: IndexTask) -> IndexResult:
        sources = settings.sources
        facts = SourceFacts(
            uri=task.source.uri, version=task.source.version, first_row=0, rows=self.rows, vocabulary=0, bytes=1,
            sha256="0" * 64, left_out=(), unread=(), lacking="",
        )  # fmt: skip
        self.put(sources.index(task.name), self.rows)
        self.put(sources.record(task.name), b"{}")
        return IndexResult(facts)

    def listed(self, work: Work, name: str) -> ListedFile:
        """A file of the audit, written by a worker, as the manifest lists it."""
        self.put(f"audits/{work.config.audit}/{name}", name.encode())
        return ListedFile.of(name, name.encode())

    def featurize(self, work: Work, task: FeaturizeTask) -> FeaturizeResult:
        return FeaturizeResult(tuple(self._record(work.features[m], task.shard) for m in task.methods))

    def _record(self, features: FeatureSet, shard: Any) -> Record:
        rejected = int(shard.hash[:2], 16) % 4 if shard.rows >= 100 else 0
        rows = shard.rows - rejected
        record = Record(
            shard=shard.name, rows=rows, rejected=rejected, bytes=rows * FEATURE_BYTES, sha256=shard.hash,
            sum_squares=float(rows), seconds=600.0, attempt=1, host=f"node-{int(shard.hash[:4], 16) % 100}",
            rejects_by_reason={"decode": rejected} if rejected else {}, fingerprint=features.fingerprint,
        )  # fmt: skip
        self.put(features.part(shard.name), record.bytes)
        self.put(features.record(shard.name), encode_json(asdict(record)))
        return record

    def gram(self, work: Work, task: GramTask) -> GramResult:
        self.put(work.features[task.method].gram(task.name), 4 * 4096 * 4096)
        return GramResult(task.name)

    def query(self, work: Work, task: QueryTask) -> QueryResult:
        phi = np.ones(K, np.float32)
        return QueryResult(tuple(MethodQuery(m, task.concept.name, phi, (PICTURE,)) for m in task.methods))

    def solve(self, work: Work, task: SolveTask) -> SolveResult:
        m = len(work.config.concepts)
        return SolveResult(
            method=task.method, count=sum(gram.count for gram in task.grams), trace=1.0, z=np.ones((m, K)),
            residual=(0.0,) * m, lam=1.0, spread=((1.0, 1.0),) * m, damping=DAMPING,
            file=self.listed(work, gram_file(task.method)),
        )  # fmt: skip

    def score(self, work: Work, task: ScoreTask) -> ScoreResult:
        """The ends of every column: as many entries as a real worker returns, of the samples of its shards."""
        first, config = task.records[0], work.config
        files = (self.listed(work, sums_file(task.method, task.first)),) if task.shards else ()
        draw = random.Random(first.shard)
        top = [(draw.gauss(3, 1), f"{first.shard}:{i}", first.shard) for i in range(config.top)]
        ends = ColumnEnds(sorted(top, reverse=True), sorted((-s, i, w) for s, i, w in top), [1] * BINS)
        names = [name for c in config.concepts for name in (c.name, plain_column(c.name))]
        return ScoreResult(task.method, dict.fromkeys(names, ends), files)

    def aggregate(self, work: Work, task: AggregateTask) -> AggregateResult:
        return AggregateResult(task.method, {}, tuple(self.listed(work, groups_file(task.method, k)) for k in KINDS))

    def show(self, work: Work, task: ShowTask) -> ShowResult:
        shard = task.shard
        return ShowResult(tuple(
            ShownSample(i, "a caption", shard.source, shard.first_row, {}, content=hashlib.md5(i.encode()).hexdigest())
            for i in task.ids
        ))  # fmt: skip

    def rejects(self, work: Work, task: RejectsTask) -> RejectsResult:
        self.put(f"audits/{work.config.audit}/{REJECTS}", b"a table")
        return RejectsResult(sum(r.rejected for records in task.records.values() for r in records))


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
