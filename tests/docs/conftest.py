"""A folder with what the commands of the pages leave, made of two small audits of the shipped model."""

import io
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.docs.pages import ROOT, commands, verb, words

# What makes the pages' commands small enough for a test.
SMALL = (
    "--config-name", "demo", "method=caption_trak", "cluster=serial", "projector.dim=64", "data.shard_rows=16",
    "methods.caption_trak.train.times=[300,700]", "methods.caption_trak.query.points=11",
    "methods.caption_trak.query.every=4",
)  # fmt: skip
CONCEPT = "concepts=[{name: red, prompt: a red triangle, without_prompt: a triangle, truth: {colour: red}, samples: 2}]"


@pytest.fixture(scope="session")
def shown(tmp_path_factory) -> Path:
    """`results/` with the shapes and the audits `demo` and `red`, `pictures/` with captions, and the assets."""
    here = tmp_path_factory.mktemp("docs")
    (here / "assets").symlink_to(ROOT / "assets")
    assert verb("jobs.shapes")([f"out={here}/results/shapes", "rows=32", "files=2"]) == 0
    (here / "pictures").mkdir()
    for i, row in enumerate(rows(here)[:8]):
        (here / f"pictures/{i}.png").write_bytes(row["image"]["bytes"])
        (here / f"pictures/{i}.txt").write_text(row["caption"])
    assert verb("jobs.audit")([*smaller(here), CONCEPT]) == 0
    audit_tutorial(here)
    return here


def audit_tutorial(here: Path) -> None:
    """The tutorial's audit of a folder of pictures, with few query samples."""
    command = next(c for c in commands("docs/index.md") if "data=folder" in c and "preflight" not in c)
    own = [word for word in words(command)[1] if not word.startswith(("store=", "data.uri=", "method="))]
    few = [word for word in SMALL[2:] if not word.startswith("data.shard_rows")]
    audit = verb("jobs.audit")
    config, run = audit.configure([*own, *few, f"store={here}/results", f"data.uri={here}/pictures"])
    concepts = tuple(replace(concept, samples=2) for concept in config.concepts)
    assert audit.run(replace(config, concepts=concepts), run) == 0


def rows(here: Path) -> list[dict]:
    return pq.read_table(here / "results/shapes").to_pylist()


def smaller(here: Path) -> list[str]:
    return [*SMALL, f"store={here}/results", f"data.uri={here}/results/shapes"]


@pytest.fixture(scope="session")
def small(shown) -> list[str]:
    """Arguments that make an audit of the demo small, on the samples of `shown`."""
    return smaller(shown)


@pytest.fixture(scope="session")
def samples(shown) -> tuple[list[Image.Image], list[str]]:
    few = rows(shown)[:12]
    return [Image.open(io.BytesIO(row["image"]["bytes"])) for row in few], [row["caption"] for row in few]
