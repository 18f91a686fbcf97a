"""Which method finds the concept: `python -m jobs.benchmark [key=value ...]`.

For every model: the features of every method over its own training set (kept in the store, so a second run only reads
them), many queries per cell, and the grade of every ranking. Writes tables, a figure and a page to `store`.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from concept_trak.config import AuditConfig, BudgetConfig, ClusterConfig, DataConfig, ModelConfig
from concept_trak.data.synthetic import labels_of, write
from concept_trak.data.two_factors import caption
from concept_trak.method import METHODS, Method
from concept_trak.projector import Projector
from concept_trak.retrieval import Cell, cells, question
from concept_trak.rival import RIVALS
from concept_trak.standings import Arm, table
from concept_trak.store.commit import Store
from concept_trak.store.manifest import finish, manifest, read_table, write_table
from concept_trak.store.tables import from_rows
from jobs.audit import executor
from jobs.configure import absolute, build, main, plain_values
from jobs.contest import graded, inquire, rivals
from jobs.failure import ended
from jobs.prepare import prepare
from jobs.progress import Progress
from jobs.run import Run
from jobs.tables import GRADED, as_text, publish
from jobs.train import TrainConfig

# What a model's grades depend on; other settings are no reason to compute them again.
GRADING = ("methods", "rows", "queries", "each", "pairs", "dampings", "parameters", "projector")


@dataclass(frozen=True)
class BenchmarkConfig:
    store: str = "results/benchmark"
    """A folder: features, grades, and the data sets drawn for it."""
    models: tuple[str, ...] = ("assets/demo",)
    """Folders that `jobs.train` wrote; each says in training.json what it was trained on."""
    methods: dict[str, Method] = field(default_factory=dict)
    """Rows to compare; empty is every row of the table."""
    rows: int = 2000
    """Training samples scored, the first of each model's training set."""
    queries: int = 32
    """Queries per cell."""
    each: int = 1
    """Trajectories that make one query."""
    pairs: tuple[str, ...] = ()
    """Captions of the pairs asked about; empty is all."""
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0, float("inf"))
    parameters: str = r"\.(weight|bias)$"
    projector: Projector = field(default_factory=Projector)
    batch: int = 50
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    interval: float = 30.0
    name: str = "benchmark"
    """The folder of the tables and the page, below `benchmarks/`."""
    reference: str = "fit_trak"
    """The method that every other is measured against."""

    def __post_init__(self) -> None:
        if self.queries < 2:
            raise ValueError(
                f"queries={self.queries}; expected at least 2: the damping is chosen on the even ones, and the numbers "
                "are taken over the odd ones"
            )
        if self.each < 1:
            raise ValueError(f"each={self.each}; expected at least 1")
        if not self.dampings or min(self.dampings) <= 0:
            raise ValueError(f"dampings={list(self.dampings)}; expected at least one positive number, or inf")
        if not self.models:
            raise ValueError("models is empty; expected folders that `python -m jobs.train` wrote")
        if self.reference not in (rows := rows_of(self)):
            raise ValueError(f"reference={self.reference!r} is none of the methods compared: {', '.join(rows)}")


def benchmark(config: BenchmarkConfig) -> int:
    """Every model, then one table per data set; returns the exit code."""
    return ended(lambda: _benchmark(replace(config, store=absolute(config.store))))


def _benchmark(config: BenchmarkConfig) -> int:
    grades: dict[str, list[dict[str, Any]]] = {}
    sets: dict[str, TrainConfig] = {}
    models = {path: trained(path) for path in config.models}
    for made in models.values():
        require_pairs(config, made)
    for path, made in models.items():
        title = f"{made.set}, {made.wrong:.0%} of captions wrong" if made.wrong else made.set
        grades.setdefault(title, []).extend(contest(config, path, made))
        sets[title] = made
    cost = {name: m.train.evaluations for name, m in rows_of(config).items()} | dict.fromkeys(RIVALS, 0)
    reference = Arm(config.reference, "own")
    tables = [table(t, rows, cells_of(config, sets[t]), reference, cost) for t, rows in grades.items()]
    publish(Store(config.store), config.name, grades, tables)
    for one in tables:
        print(as_text(one))
    print(f"\npage       {config.store}/benchmarks/{config.name}/benchmark.html")
    return 0


def contest(config: BenchmarkConfig, path: str, made: TrainConfig) -> list[dict[str, Any]]:
    """One model's grades; those of an earlier run with the same settings are read."""
    audit = audit_of(config, path, made)
    p = prepare(audit)
    if manifest(p.audit) is None:
        run = Run(p, executor(audit), Progress(p.audit, config.interval))
        records = run.featurize()
        inquired = inquire(run)
        rows = [*graded(run, records, config.dampings, config.each), *rivals(run, config.queries)]
        write_table(p.audit, "grades.parquet", from_rows(GRADED, rows))
        parts = [record for found in records.values() for record in found]
        files = ["audit.yaml", "plan.parquet", "grades.parquet", *inquired]
        finish(p.audit, files, parts, {"fingerprints": p.work.fingerprints})
    return [{"model": path, **row} for row in read_table(p.audit, "grades.parquet").to_pylist()]


def trained(path: str) -> TrainConfig:
    """What a model was trained on, as its folder says."""
    file = Path(path) / "training.json"
    if not file.is_file():
        raise ValueError(f"models: {path} has no training.json; expected a folder that `python -m jobs.train` wrote")
    try:
        return build(TrainConfig, {"out": path, **json.loads(file.read_text())["settings"]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"models: {file} is not what `python -m jobs.train` writes: {error}; train it again") from None


def rows_of(config: BenchmarkConfig) -> dict[str, Method]:
    return config.methods or METHODS


def require_pairs(config: BenchmarkConfig, made: TrainConfig) -> None:
    """That every pair asked about is one of the model's data set, so that its models share their cells."""
    known = [caption(*pair) for pair in made.kinds.all_pairs]
    if unknown := [pair for pair in config.pairs if pair not in known]:
        raise ValueError(f"pairs: {unknown[0]!r} is no pair of {made.set}; expected some of: {', '.join(known)}")


def cells_of(config: BenchmarkConfig, made: TrainConfig) -> list[Cell]:
    return [cell for cell in cells(made.kinds) if not config.pairs or caption(*cell.pair) in config.pairs]


def audit_of(config: BenchmarkConfig, path: str, made: TrainConfig) -> AuditConfig:
    """The audit that computes a model's features: its training set, every cell as a concept."""
    kinds, empty = made.kinds, made.dropped > 0
    folder = f"{config.store}/data/{made.set}-{made.seed}-{made.wrong:g}-{config.rows}"
    write(folder, config.rows, made.seed, kinds, 4, made.side, 0, made.wrong)
    samples, said = config.queries * config.each, made.wrong > 0
    concepts = tuple(question(c, kinds, empty, samples, said) for c in cells_of(config, made))
    negative = {} if empty else {"negative": "other_label", "combinations": tuple(caption(*p) for p in kinds.all_pairs)}
    audit = AuditConfig(
        store=config.store,
        model=ModelConfig(path, config.parameters, batch=config.batch, **negative),
        data=DataConfig(folder, id_column="id", label_columns=labels_of(kinds, made.wrong), shard_rows=250),
        methods=rows_of(config),
        projector=config.projector,
        concepts=concepts,
        cluster=config.cluster,
        budget=config.budget,
    )
    settings = plain_values(replace(config, methods=rows_of(config)))
    what = [{key: settings[key] for key in GRADING}, path]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return replace(audit, audit=f"{made.set}-{made.seed}-{digest}")


if __name__ == "__main__":
    main(BenchmarkConfig, "benchmark", benchmark)
