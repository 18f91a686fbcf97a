"""A row of the paper's tables on its published data: `python -m jobs.published set=celeba|abc root=<folder> ...`.

Reads the data set as it was published, writes it once as Parquet, audits it for every query of the benchmark, and
prints the table's numbers. Every key of an audit is one here; the same command goes on where it stopped.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from concept_trak.concept import Concept
from concept_trak.config import AuditConfig
from concept_trak.data import celeba, exemplars
from concept_trak.data.celeba import Faces
from concept_trak.data.exemplars import Custom
from concept_trak.data.published import write
from concept_trak.metrics import precision_at, recall_at
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit, read_table
from jobs.audit import audit
from jobs.configure import main
from jobs.failure import ended

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
            raise ValueError("concepts are those of the benchmark; ask your own with jobs.audit on the Parquet in out")


def published(config: PublishedConfig) -> int:
    """The data, the audit and the table; returns the exit code."""
    return ended(lambda: _published(config))


def _published(config: PublishedConfig) -> int:
    if config.set not in SETS or not config.root:
        raise ValueError(
            f"set={config.set!r}, root={config.root!r}; expected set={' or '.join(SETS)} and the folder of the data set"
        )
    if away := [f"{key}={value}" for key in ("root", "out") if "://" in (value := getattr(config, key))]:
        raise ValueError(f"{', '.join(away)}: expected a folder of this machine; only store= may be elsewhere")
    whole, asked, measure = SETS[config.set](config)
    code = audit(whole)
    if code == 0 and not config.preflight:
        rows = list(table(whole, asked, measure))
        for row in rows:
            value = f"{row['measure']} {row['value']:.3f} over {row['queries']} queries"
            print(f"{row['method']:<14} {row['cell']:<4} {value}")
        Path(f"{whole.data.uri}.{whole.audit}.json").write_text(json.dumps(rows, indent=1))
    return code


def faces(config: PublishedConfig) -> tuple[AuditConfig, Asked, Measure]:
    """CelebA-HQ: precision@10 of each attribute, in and out of distribution."""
    root, chosen = Path(config.root), config.faces
    found = celeba.pictures(root, chosen)
    whole = _audit(config, found, {"faces": asdict(chosen)}, chosen.attributes)
    asked = celeba.concepts(chosen, config.samples)
    whole = replace(whole, concepts=(*asked["in"], *asked["out"]))
    return whole, asked, ("precision@10", partial(precision_at, k=10))


def custom(config: PublishedConfig) -> tuple[AuditConfig, Asked, Measure]:
    """AbC: recall@10 of one tuned model's exemplars, over its tasks."""
    root, chosen = Path(config.root), config.custom
    found = exemplars.pictures(root, chosen)
    whole = _audit(config, found, {"custom": asdict(replace(chosen, tasks="", scope="global"))}, ("exemplar",))
    if not whole.model.embeddings:
        whole = replace(whole, model=replace(whole.model, embeddings=exemplars.embeddings(root, chosen)))
    asked = exemplars.concepts(root, chosen, config.samples)
    carriers = sum(one.labels["exemplar"] == "yes" for one in found)
    measure = partial(recall_at, carriers=carriers, k=10)
    return replace(whole, concepts=tuple(asked)), {"all": asked}, ("recall@10", measure)


SETS: dict[str, Callable[[PublishedConfig], tuple[AuditConfig, Asked, Measure]]] = {"celeba": faces, "abc": custom}


def _audit(config: PublishedConfig, found: list[Any], settings: dict[str, Any], labels: Iterable[str]) -> AuditConfig:
    """The audit of the data that was found, once it lies there as Parquet."""
    out = Path(config.out or f"results/published/{config.set}").absolute()
    write(out, found, {"set": config.set, "root": config.root, **settings})
    data = replace(config.data, uri=str(out), format="parquet", id_column="id", label_columns=tuple(labels))
    own = {f.name: getattr(config, f.name) for f in fields(AuditConfig)}
    return AuditConfig(**{**own, "data": data, "audit": config.audit or config.set, "top": max(10, config.top)})


def table(config: AuditConfig, asked: Asked, measure: Measure) -> Iterable[dict[str, Any]]:
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


if __name__ == "__main__":
    main(PublishedConfig, "published", published)
