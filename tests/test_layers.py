"""Imports point down; a second test proves that the first can fail."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# (where, what it must not import, except in)
CONTRACTS = (
    ("concept_trak", ("ray", "hydra", "omegaconf", "cluster", "jobs", "pydantic"), ()),
    ("concept_trak", ("diffusers", "transformers", "peft"), ("concept_trak/models",)),
    (
        "concept_trak",
        ("pyarrow", "fsspec", "s3fs"),
        ("concept_trak/store", "concept_trak/data", "concept_trak/models/location.py"),
    ),
    ("concept_trak", ("sklearn",), ("concept_trak/data/benchmarks/drawing.py",)),
    ("cluster", ("torch", "concept_trak", "jobs", "hydra", "omegaconf"), ()),
    (
        "cluster",
        ("ray",),
        (
            "cluster/on_ray.py",
            "cluster/actor_pool.py",
            "cluster/actor_pool.py",
            "cluster/submission.py",
            "cluster/metrics.py",
        ),
    ),
    ("jobs", ("ray", "torch", "diffusers", "transformers", "pyarrow", "fsspec"), ("jobs/train.py",)),
)
# The theory knows nothing of files, machines or pages; each room lists what it may know of the house.
BELOW = {
    "noise": set(),
    "precision": set(),
    "denoiser": set(),
    "probe": set(),
    "state": {"denoiser"},
    "trajectory": {"denoiser", "noise", "precision", "probe", "state"},
    "direction": {"denoiser", "probe", "state"},
    "piece": {"precision"},
    "convolution": {"piece", "precision"},
    "layer": {"convolution", "piece", "precision"},
    "length": {"piece"},
    "gradient": {"denoiser", "layer", "length", "piece", "precision", "state"},
    "weight": {"denoiser", "state"},
    "method": {"direction", "probe", "trajectory", "weight"},
    "signs": {"noise"},
    "projector": {"piece", "precision", "signs"},
    "total": {"piece", "precision", "projector"},
    "fisher": set(),
    "scoring": set(),
    "metrics": set(),
    "features": {
        *("denoiser", "direction", "gradient", "length", "method", "precision", "probe", "projector", "state"),
        *("total", "trajectory", "weight"),
    },
    "phrasing": set(),
    "contradiction": set(),
    "negative": {"denoiser", "noise"},
    "concept": {"contradiction", "phrasing"},
    "asking": {"concept", "denoiser", "method", "negative", "probe", "state", "trajectory"},
    "retrieval": {"concept", "data"},
    "standings": {"retrieval"},
}


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def breaches(path: str, source: str) -> list[str]:
    """What a file imports against the contracts."""
    found = []
    for where, forbidden, exceptions in CONTRACTS:
        if path.startswith(f"{where}/") and not any(path.startswith(e) for e in exceptions):
            found += [f"{path} imports {n}" for n in imported(source) if n.split(".")[0] in forbidden]
    room = path.removeprefix("concept_trak/").removesuffix(".py")
    if path.startswith("concept_trak/") and room in BELOW:
        known = {n.split(".")[1] for n in imported(source) if n.startswith("concept_trak.")}
        found += [f"{path} knows {name}, which is not below it" for name in sorted(known - BELOW[room])]
    return found


def test_imports_point_down():
    files = [p for top in ("concept_trak", "cluster", "jobs") for p in (ROOT / top).rglob("*.py")]
    assert len(files) > 30, "the packages were not found"
    wrong = [b for p in files for b in breaches(p.relative_to(ROOT).as_posix(), p.read_text())]
    assert not wrong, "; ".join(wrong)


def test_the_first_test_can_fail():
    assert breaches("concept_trak/attribution/features.py", "import ray") == [
        "concept_trak/attribution/features.py imports ray"
    ]
    assert breaches("cluster/queue.py", "from concept_trak.audit.featurize import Featurize")
    assert breaches("concept_trak/attribution/denoiser.py", "from diffusers import UNet2DConditionModel")
    assert breaches("concept_trak/attribution/ranking.py", "import pyarrow.parquet as pq")
    assert breaches("concept_trak/attribution/denoiser.py", "from concept_trak.attribution.features import features")
    assert not breaches("concept_trak/models/text_to_image.py", "import diffusers")


def test_files_stay_short():
    long = {p.relative_to(ROOT).as_posix(): n for top in ("concept_trak", "cluster", "jobs")
            for p in (ROOT / top).rglob("*.py") if (n := len(p.read_text().splitlines())) > 200}  # fmt: skip
    assert not long, f"split these by idea: {long}"
