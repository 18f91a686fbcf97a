"""The paper's tables on published data sets: the audit for a table, and the measure of its rankings."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.ranking import precision_at, recall_at
from concept_trak.config import AuditConfig
from concept_trak.data.benchmarks import abc_exemplars, celeba
from concept_trak.data.benchmarks.abc_exemplars import Custom
from concept_trak.data.benchmarks.celeba import Faces
from concept_trak.data.benchmarks.export import Picture, export_parquet
from concept_trak.store.manifest import Audit, read_table
from concept_trak.store.store import Store


@dataclass(frozen=True)
class PublishedConfig:
    """The data set of a published table, in addition to the settings of its audit."""

    set: str = ""
    """celeba (CelebA-HQ, or CelebA) or abc."""
    root: str = ""
    """The folder of the data set, as it was published."""
    out: str = ""
    """The folder for the data set as Parquet; empty means results/published/<set>."""
    samples: int = 16
    """Trajectories of each query."""
    faces: Faces = field(default_factory=Faces)
    """celeba: the attributes, and the combination that is not in the training set."""
    custom: Custom = field(default_factory=Custom)
    """abc: the tuned model, and the captions of its exemplars."""


@dataclass(frozen=True)
class PublishedBenchmark:
    """An audit of a published data set, and the measure of its rankings.

    Attributes:
        audit: the settings of the audit.
        concepts: the queries, by part of the table.
        measure: the name of the measure.
        grade: the measure, a function of whether each of the first ten samples shows the concept.
    """

    audit: AuditConfig
    concepts: dict[str, list[Concept]]
    measure: str
    grade: Callable[[list[bool]], float]


def published_benchmark(config: PublishedConfig, audit: AuditConfig) -> PublishedBenchmark:
    """Write the data set as Parquet and return its benchmark.

    Args:
        config: the data set.
        audit: the settings of the audit; the data set replaces its data and concepts.

    Raises:
        UserError: the data set is unknown, is not a local folder, or differs from the published files; or the audit
            has concepts of its own.
    """
    if config.set not in BENCHMARKS or not config.root:
        raise UserError(
            f"set={config.set!r}, root={config.root!r}; expected set={' or '.join(BENCHMARKS)} and the folder of the "
            "data set"
        )
    if remote := [f"{key}={value}" for key in ("root", "out") if "://" in (value := getattr(config, key))]:
        raise UserError(f"{', '.join(remote)}: expected a folder of this machine; only store= may be an object store")
    if audit.concepts:
        raise UserError(
            "concepts is set, and the benchmark has its own concepts; for yours, run jobs.audit on the Parquet in out"
        )
    return BENCHMARKS[config.set](config, audit)


def celeba_benchmark(config: PublishedConfig, audit: AuditConfig) -> PublishedBenchmark:
    """CelebA-HQ: precision@10 of each attribute, in and out of distribution."""
    pictures = celeba.celeba_pictures(Path(config.root), config.faces)
    audit = _with_data(config, audit, pictures, {"faces": asdict(config.faces)}, config.faces.attributes)
    concepts = celeba.celeba_concepts(config.faces, config.samples)
    return PublishedBenchmark(
        audit=replace(audit, concepts=(*concepts["in"], *concepts["out"])),
        concepts=concepts,
        measure="precision@10",
        grade=partial(precision_at, k=10),
    )


def abc_benchmark(config: PublishedConfig, audit: AuditConfig) -> PublishedBenchmark:
    """AbC: recall@10 of a tuned model's exemplars, over its tasks."""
    root, custom = Path(config.root), config.custom
    pictures = abc_exemplars.abc_pictures(root, custom)
    settings = {"custom": asdict(replace(custom, tasks="", scope="global"))}
    audit = _with_data(config, audit, pictures, settings, ("exemplar",))
    if not audit.model.embeddings:
        audit = replace(audit, model=replace(audit.model, embeddings=abc_exemplars.embeddings(root, custom)))
    concepts = abc_exemplars.abc_concepts(root, custom, config.samples)
    carriers = sum(picture.labels["exemplar"] == "yes" for picture in pictures)
    return PublishedBenchmark(
        audit=replace(audit, concepts=tuple(concepts)),
        concepts={"all": concepts},
        measure="recall@10",
        grade=partial(recall_at, carriers=carriers, k=10),
    )


BENCHMARKS: dict[str, Callable[[PublishedConfig, AuditConfig], PublishedBenchmark]] = {
    "celeba": celeba_benchmark,
    "abc": abc_benchmark,
}


def _with_data(
    config: PublishedConfig,
    audit: AuditConfig,
    pictures: list[Picture],
    settings: dict[str, Any],
    labels: tuple[str, ...],
) -> AuditConfig:
    """Write the pictures as Parquet and return their audit."""
    out = Path(config.out or f"results/published/{config.set}").absolute()
    export_parquet(out, pictures, {"set": config.set, "root": config.root, **settings})
    data = replace(audit.data, uri=str(out), format="parquet", id_column="id", label_columns=labels)
    return replace(audit, data=data, audit=audit.audit or config.set, top=max(10, audit.top))


def write_published_scores(benchmark: PublishedBenchmark) -> list[str]:
    """Write the table of a finished benchmark beside its data, as JSON; returns its lines."""
    rows = list(published_scores(benchmark))
    Path(f"{benchmark.audit.data.uri}.{benchmark.audit.audit}.json").write_text(json.dumps(rows, indent=1))
    return [
        f"{row['method']:<14} {row['cell']:<4} {row['measure']} {row['value']:.3f} over {row['queries']} queries"
        for row in rows
    ]


def published_scores(benchmark: PublishedBenchmark) -> Iterator[dict[str, Any]]:
    """One row for each method and part of the table: the measure's mean over the queries, for damped rankings."""
    audit = benchmark.audit
    top = read_table(Audit(Store(audit.store), audit.audit), "top.parquet").to_pylist()
    for method in audit.methods:
        for part, concepts in benchmark.concepts.items():
            values = [benchmark.grade(_hits(top, method, concept)) for concept in concepts]
            yield {"method": method, "cell": part, "measure": benchmark.measure, "value": float(np.mean(values)),
                   "queries": len(values)}  # fmt: skip


def _hits(top: list[dict[str, Any]], method: str, concept: Concept) -> list[bool]:
    """Whether each of the first ten samples shows the concept."""
    key = (concept.name, method, "damped", "top")
    rows = [r for r in top if (r["concept"], r["method"], r["form"], r["end"]) == key and r["rank"] <= 10]
    best = sorted(rows, key=lambda row: row["rank"])
    return [all(row[label] == value for label, value in concept.truth.items()) for row in best]
