"""A small world for the job: two models, a data set of shapes, and readers of what an audit leaves on storage."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from concept_trak import UserError
from concept_trak.attribution.method import METHODS
from concept_trak.config import AuditConfig
from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.models import small
from concept_trak.store.codec import decode_blocks
from jobs.audit import AuditRunConfig, audit
from jobs.configure import configure_all
from jobs.exit_codes import ended

RESOLUTION = 16
CONCEPT = "{name: triangle, prompt: a red triangle, without_prompt: red, samples: 2, truth: {shape: triangle}}"


def few(method: str) -> list[str]:
    """Two states a side instead of nine: every stage runs, in seconds."""
    sides = {"train": METHODS[method].train, "query": METHODS[method].query}
    times = [f"methods.{method}.{s}.times=[300,700]" for s, p in sides.items() if p.trajectory == "forward_noise"]
    paths = [s for s, p in sides.items() if p.trajectory != "forward_noise"]
    return times + [f"methods.{method}.{s}.{key}" for s in paths for key in ("points=11", "every=4")]


@dataclass(frozen=True)
class Found:
    """A finished audit, read the way a stranger would."""

    store: Path
    audit: str
    code: int = 0

    @property
    def folder(self) -> Path:
        return self.store / "audits" / self.audit

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())

    def top(self, method: str = "caption_trak", form: str = "damped", end: str = "top") -> list[dict[str, Any]]:
        rows = pq.read_table(self.folder / "top.parquet").to_pylist()
        return [r for r in rows if (r["method"], r["form"], r["end"]) == (method, form, end)]

    def scores(self, method: str = "caption_trak", column: str = "triangle") -> dict[str, float]:
        tables = [pq.read_table(path) for path in sorted((self.folder / method / "scores").iterdir())]
        return {i: s for t in tables for i, s in zip(t["sample_id"].to_pylist(), t[column].to_pylist(), strict=True)}

    def features(self, method: str = "caption_trak") -> tuple[list[str], np.ndarray, np.ndarray]:
        """(ids, weight [n], phi [n, k]) of the method's parts, in plan order, float64."""
        fp = self.manifest["settings"]["fingerprints"][method]
        parts = [p["name"] for p in self.manifest["parts"] if f"/{fp}/" in p["name"]]
        found = [block for name in parts for block in decode_blocks((self.store / name).read_bytes())]
        weight, phi = np.concatenate([b.weight for b in found]), np.concatenate([b.phi() for b in found])
        return [i for block in found for i in block.ids], weight.astype(np.float64), phi.astype(np.float64)

    def query(self, method: str, concept: str = "triangle") -> dict[str, Any]:
        (row,) = pq.read_table(self.folder / method / "queries" / f"{concept}.parquet").to_pylist()
        return row


@dataclass(frozen=True)
class World:
    """Where the models and the data lie, and the command line over them."""

    root: Path

    def arguments(
        self, store: Path | str, *more: str, model: str = "latents", method: str = "caption_trak", data: str = "shapes"
    ) -> list[str]:
        """The arguments of one small audit on `store`; `more` overrides what is there."""
        usual = {
            "store": str(store), "audit": "first", "model.path": f"{self.root}/{model}", "data": "shapes",
            "data.uri": f"{self.root}/{data}", "method": method, "projector.dim": "64", "data.shard_rows": "8",
            "scores": "all", "cluster": "serial", "concepts": f"[{CONCEPT}]",
        }  # fmt: skip
        said = [*(f"{k}={v}" for k, v in usual.items()), *(o for m in method.strip("[]").split(",") for o in few(m))]
        return [f"{k}={v}" for k, v in dict(a.split("=", 1) for a in (*said, *more)).items()]

    def configs(self, store: Path | str, *more: str, **chosen: str) -> tuple[AuditConfig, AuditRunConfig]:
        return configure_all((AuditConfig, AuditRunConfig), "config", self.arguments(store, *more, **chosen))

    def config(self, store: Path | str, *more: str, **chosen: str) -> AuditConfig:
        return self.configs(store, *more, **chosen)[0]

    def audit(self, store: Path, *more: str, **chosen: str) -> Found:
        """Run it in this process; `code` is its exit code. What the user can mend is raised as it is."""
        config, run = self.configs(store, *more, **chosen)
        try:
            return Found(store, config.audit, audit(config, run))
        except UserError:
            raise
        except Exception as error:
            return Found(store, config.audit, ended(partial(reraise, error)))


def reraise(error: Exception) -> int:
    raise error


def build(root: Path) -> World:
    small.pixel_pipeline(0, RESOLUTION).save_pretrained(root / "pixels")
    small.latent_pipeline(0, RESOLUTION).save_pretrained(root / "latents")
    write_synthetic(root / "shapes", 48, seed=0, files=3, resolution=RESOLUTION)
    write_synthetic(root / "few", 16, seed=0, files=1, resolution=RESOLUTION)
    return World(root)


def altered(world: World, folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """The data set `few` with its 16 rows changed in place by `change`, in a folder of its own."""
    (source,) = (world.root / "few").iterdir()
    table = pq.read_table(source)
    rows = table.to_pylist()
    change(rows)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "train.parquet")
    return folder


def files_under(folder: Path) -> dict[str, int]:
    """Every file by its name below `folder`, and when it was last written (ns)."""
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
