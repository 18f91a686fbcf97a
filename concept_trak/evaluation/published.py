from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
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
from concept_trak.data.benchmarks.export import export_parquet
from concept_trak.store.manifest import Audit, read_table
from concept_trak.store.store import Store

Measure = tuple[str, Callable[[list[bool]], float]]  # its name, and its value for which of the first ten show it
Asked = dict[str, list[Concept]]  # by the part of the table that they stand in


@dataclass(frozen=True)
class PublishedConfig(AuditConfig):
    set: str = ""
    """celeba (CelebA-HQ, or CelebA) or abc."""
    root: str = ""
    """The folder of the data set, as it was published."""
    out: str = ""
    """Where it is written as Parquet; empty is results/published/<set>."""
    samples: int = 16
    """Trajectories of each query."""
    faces: Faces = field(default_factory=Faces)
    """celeba: the attributes and the combination that training never saw."""
    custom: Custom = field(default_factory=Custom)
    """abc: the tuned model, and how its exemplars are captioned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.concepts:
            raise UserError("concepts are those of the benchmark; ask your own with jobs.audit on the Parquet in out")


def celeba_benchmark(config: PublishedConfig) -> tuple[AuditConfig, Asked, Measure]:
    """CelebA-HQ: precision@10 of each attribute, in and out of distribution."""
    root, chosen = Path(config.root), config.faces
    found = celeba.celeba_pictures(root, chosen)
    whole = _audit(config, found, {"faces": asdict(chosen)}, chosen.attributes)
    asked = celeba.celeba_concepts(chosen, config.samples)
    whole = replace(whole, concepts=(*asked["in"], *asked["out"]))
    return whole, asked, ("precision@10", partial(precision_at, k=10))


def abc_benchmark(config: PublishedConfig) -> tuple[AuditConfig, Asked, Measure]:
    """AbC: recall@10 of one tuned model's exemplars, over its tasks."""
    root, chosen = Path(config.root), config.custom
    found = abc_exemplars.abc_pictures(root, chosen)
    whole = _audit(config, found, {"custom": asdict(replace(chosen, tasks="", scope="global"))}, ("exemplar",))
    if not whole.model.embeddings:
        whole = replace(whole, model=replace(whole.model, embeddings=abc_exemplars.embeddings(root, chosen)))
    asked = abc_exemplars.abc_concepts(root, chosen, config.samples)
    carriers = sum(one.labels["exemplar"] == "yes" for one in found)
    measure = partial(recall_at, carriers=carriers, k=10)
    return replace(whole, concepts=tuple(asked)), {"all": asked}, ("recall@10", measure)


SETS: dict[str, Callable[[PublishedConfig], tuple[AuditConfig, Asked, Measure]]] = {
    "celeba": celeba_benchmark,
    "abc": abc_benchmark,
}


def _audit(config: PublishedConfig, found: list[Any], settings: dict[str, Any], labels: Iterable[str]) -> AuditConfig:
    """The audit of the data that was found, once it lies there as Parquet."""
    out = Path(config.out or f"results/published/{config.set}").absolute()
    export_parquet(out, found, {"set": config.set, "root": config.root, **settings})
    data = replace(config.data, uri=str(out), format="parquet", id_column="id", label_columns=tuple(labels))
    own = {f.name: getattr(config, f.name) for f in fields(AuditConfig)}
    return AuditConfig(**{**own, "data": data, "audit": config.audit or config.set, "top": max(10, config.top)})


def published_scores(config: AuditConfig, asked: Asked, measure: Measure) -> Iterable[dict[str, Any]]:
    """One row per method and part of the table: the measure's mean over its queries, of the damped rankings."""
    top = read_table(Audit(Store(config.store), config.audit), "top.parquet").to_pylist()
    name, value = measure
    for method in config.methods:
        for cell, concepts in asked.items():
            values = [value(_hits(top, method, concept)) for concept in concepts]
            yield {"method": method, "cell": cell, "measure": name, "value": float(np.mean(values)),
                   "queries": len(values)}  # fmt: skip


def _hits(top: list[dict[str, Any]], method: str, concept: Concept) -> list[bool]:
    """Which of the first ten show the concept."""
    wanted = (concept.name, method, "damped", "top")
    rows = [r for r in top if (r["concept"], r["method"], r["form"], r["end"]) == wanted and r["rank"] <= 10]
    best = sorted(rows, key=lambda row: row["rank"])
    return [all(row[label] == shown for label, shown in concept.truth.items()) for row in best]
