"""How the driver grows with the data: one command, one page.

    python -m tests.benchmarks.scale                       # everything: an hour of one idle core
    python -m tests.benchmarks.scale --shards 100 1000 --samples 1000 10000 --simulated 1000 10000 --rows 100 10000

Each row of a table is a process of its own, so that its peak of memory is its own. The page and the numbers are
results/benchmarks/scale.md and scale.json.
"""

import argparse
import contextlib
import io
import json
import logging
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.benchmarks.scale_page import publish_scale

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = 16
DATA, STORE = "simulated://data", "simulated://bucket/store"


@contextmanager
def only_errors(name: str) -> Iterator[None]:
    """A logger without its warnings: one in a thousand workers fails, and each is a line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@only_errors("cluster.queue")
def simulate(shards: int, rows: int, growth: float = 0.01) -> dict[str, Any]:
    """Three audits of a simulated data set: the first, one after growth, one of unchanged data; then gc.

    Args:
        shards: sources, each of one shard.
        rows: samples of each.
        growth: share of sources that are new in the second audit.
    """
    from tests.benchmarks import simulated

    simulated.begin()
    new, baseline = max(1, int(shards * growth)), simulated.peak_bytes()
    result: dict[str, Any] = {"shards": shards, "samples": shards * rows, "new": new, "audits": {}}
    for name, sources in (("first", shards), ("grown", shards + new), ("same", shards + new)):
        add_sources(sources, rows)
        simulated.LEDGER.restart()
        with mock.patch("concept_trak.audit.index.check_first_rows"):  # it reads a file, and there are no bytes
            run(settings(name, STORE, DATA, rows), simulated_cluster(rows))
        result["audits"][name] = used()
    simulated.LEDGER.restart()
    collect()
    result["audits"]["gc"] = used()
    return result | {"peak": simulated.peak_bytes() - baseline}


def real(shards: int, rows: int) -> dict[str, Any]:
    """Two audits of a small data set on this machine's disk: the first, and one of unchanged data."""
    from tests.benchmarks import simulated
    from tests.benchmarks.real import AccountedSerial, count_requests, write_data

    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "data", shards, rows)
        count_requests()
        baseline = simulated.peak_bytes()
        result: dict[str, Any] = {"shards": shards, "samples": shards * rows, "new": 0, "audits": {}}
        for name in ("first", "same"):
            simulated.LEDGER.restart()
            config = settings(name, f"{folder}/store", f"{folder}/data", rows)
            run(config, AccountedSerial())
            result["audits"][name] = used()
    return result | {"peak": simulated.peak_bytes() - baseline}


def used() -> dict[str, Any]:
    """What the driver used since the ledger was restarted, by stage."""
    from tests.benchmarks.simulated import LEDGER

    LEDGER.enter("end")
    requests = {stage: dict(kinds) for stage, kinds in LEDGER.requests.items() if stage != "workers"}
    return {"seconds": {s: t for s, t in LEDGER.seconds.items() if s not in ("workers", "end")}, "requests": requests}


def add_sources(number: int, rows: int) -> None:
    """Files at the simulated address, until there are so many."""
    from tests.benchmarks.simulated import SimulatedFiles

    for i in range(len(SimulatedFiles.folders.get("data", {})), number):
        SimulatedFiles.put(f"data/train-{i:07d}.parquet", rows * 100_000)


def simulated_cluster(rows: int) -> Any:
    from tests.benchmarks.simulated import Answers, SimulatedCluster

    return SimulatedCluster(Answers(STORE.partition("://")[2], rows).of_every_worker())


def run(config: Any, executor: Any) -> None:
    """One audit: everything that the driver does is done."""
    from concept_trak.audit.index import open_data
    from concept_trak.audit.pipeline import AuditRun
    from concept_trak.audit.plan import feature_settings
    from concept_trak.audit.prepare import Inputs, begin_prepared
    from concept_trak.audit.query_features import QueryTask
    from concept_trak.audit.stages import run_stages
    from concept_trak.config import WorkerSettings
    from concept_trak.models.gaussian import Gaussian
    from concept_trak.report.publish_audit import publish_audit
    from concept_trak.store.store import Store
    from tests.benchmarks.simulated import LEDGER

    store, denoiser = Store(config.store), Gaussian()
    named = {n: feature_settings(config, m, denoiser, denoiser.identity()) for n, m in config.methods.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        LEDGER.enter("list")
        data = open_data(store, config.data, "text", Accounted(executor, None))
        LEDGER.enter("plan")
        queries = [QueryTask((), concept) for concept in config.concepts]
        prepared = begin_prepared(config, WorkerSettings(), Inputs(store, denoiser), named, data, queries)
        audit_run = AuditRun(prepared, Accounted(executor, prepared.audit), line=lambda text: None)
        LEDGER.enter("between")
        results = run_stages(audit_run)
        LEDGER.enter("publish")
        publish_audit(audit_run, results)


class Accounted:
    """The mapper of the jobs, with every stage accounted by itself."""

    def __init__(self, executor: Any, audit: Any) -> None:
        from jobs.execute import ClusterConfig, ExecutorMapper, RunConfig

        self._mapper = ExecutorMapper(RunConfig(ClusterConfig(kind="serial"), interval=60.0), audit)
        self._mapper.__dict__["executor"] = executor

    def __call__(self, stage: str, worker: type[Any], settings: Any, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        from tests.benchmarks.simulated import LEDGER

        before = LEDGER.enter(stage)
        yield from self._mapper(stage, worker, settings, tasks)
        LEDGER.enter(before)


def settings(audit: str, store: str, data: str, rows: int) -> Any:
    """An audit of one method and many concepts, compared with the one before."""
    from concept_trak.attribution.concept import Concept
    from concept_trak.attribution.method import METHODS
    from concept_trak.attribution.projector import Projector
    from concept_trak.config import AuditConfig, DataConfig, ModelConfig
    from tests.benchmarks.simulated import K

    names = [f"concept-{i:02d}" for i in range(CONCEPTS)]
    return AuditConfig(
        store=store, audit=audit, model=ModelConfig(path="/nothing"), data=DataConfig(uri=data, shard_rows=rows),
        methods={"trak": METHODS["trak"]}, projector=Projector(dim=K), since="latest",
        concepts=tuple(Concept(name, prompt=f"a {name}", without_prompt="a thing") for name in names),
    )  # fmt: skip


def collect() -> None:
    """gc, which keeps the last audit and what it needs."""
    from concept_trak.report.maintenance import collect_garbage
    from concept_trak.store.gc import Retention
    from concept_trak.store.store import Store
    from tests.benchmarks.simulated import LEDGER

    LEDGER.enter("gc")
    for _ in collect_garbage(Store(STORE), Retention(before=float("inf"), keep=1), delete=True):
        pass


def in_a_process(function: str, *arguments: Any) -> dict[str, Any]:
    """What a function of this module returns, computed in a process of its own: its peak of memory is its own."""
    code = (
        "import json, sys; from tests.benchmarks import scale; "
        f"print(json.dumps(scale.{function}(*json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    parser.add_argument("--samples", type=int, nargs="*", default=[1000, 10_000, 100_000], help="real, in 100 shards")
    parser.add_argument("--shards", type=int, nargs="*", default=[100, 1000, 10_000], help="real, of 10 samples")
    parser.add_argument(
        "--simulated", type=int, nargs="*", default=[1000, 10_000, 100_000], help="shards of 10^4 samples"
    )
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[100, 1000, 10_000], help="samples of 10^4 simulated shards"
    )
    parser.add_argument("--fixed", type=int, default=10_000, help="simulated shards of the table over samples")
    parser.add_argument("--out", type=Path, default=ROOT / "results/benchmarks")
    asked = parser.parse_args()
    tables = {
        "real, by samples": [in_a_process("real", 100, samples // 100) for samples in asked.samples],
        "real, by shards": [in_a_process("real", shards, 10) for shards in asked.shards],
        "simulated, by samples": [in_a_process("simulate", asked.fixed, rows) for rows in asked.rows],
        "simulated, by shards": [in_a_process("simulate", shards, 10_000) for shards in asked.simulated],
    }
    command = shlex.join(["python", "-m", "tests.benchmarks.scale", *sys.argv[1:]])
    print(publish_scale(asked.out, {name: rows for name, rows in tables.items() if rows}, command))


if __name__ == "__main__":
    main()
