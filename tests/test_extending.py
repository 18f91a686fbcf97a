"""Five extensions from outside, each in one place: a method, a projector, a format, a family, an executor."""

import base64
import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import concept_trak as ct
import concept_trak.data
import concept_trak.models
from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.projector import PROJECTORS, Tables
from concept_trak.audit.mapper import FirstAttempt
from concept_trak.config import DataConfig, ModelConfig
from tests.docs.pages import blocks

ROOT = Path(__file__).resolve().parents[1]
RED = ct.Concept("red", prompt="a red square", without_prompt="a square", samples=1)
CAPTIONS = [f"a {colour} square" for colour in ("red", "green", "blue")]


def quick() -> ct.Method:
    """A new row: Concept-TRAK on a short grid."""
    row = ct.METHODS["concept_trak"]
    return replace(row, train=replace(row.train, points=4, every=1), query=replace(row.query, points=4, every=1))


def images() -> list[Image.Image]:
    return [Image.new("RGB", (32, 32), caption.split()[1]) for caption in CAPTIONS]


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return ct.load_model(str(ROOT / "assets/demo"))


@pytest.fixture
def lines(tmp_path) -> Path:
    """A data set in the format that docs/extending.md adds: JSON lines with the images in base64."""
    (tmp_path / "lines").mkdir()
    with open(tmp_path / "lines/a.jsonl", "w") as file:
        for image, caption in zip(images(), CAPTIONS, strict=True):
            png = io.BytesIO()
            image.save(png, "PNG")
            file.write(json.dumps({"image": base64.b64encode(png.getvalue()).decode(), "caption": caption}) + "\n")
    return tmp_path / "lines"


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Adds one file to a package of the library, as if it lay there."""

    def add(package: Any, name: str, source: str) -> None:
        folder = tmp_path / f"to_{package.__name__}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    return add


def scores(model: Denoiser, concept: ct.Concept = RED, **settings: Any) -> dict[str, float]:
    attributor = ct.Attributor(model, **{"method": quick(), "projector": ct.Projector(dim=64), **settings})
    attributor.fit(images(), CAPTIONS)
    result = attributor.score(concept)
    return dict(zip(result.ids, result.scores.tolist(), strict=True))


def test_a_method_is_a_row(model):
    row = quick()
    other = replace(row, train=replace(row.train, direction="denoising_error"))
    one, two = scores(model, method=row), scores(model, method=other)
    assert one.keys() == two.keys()
    assert one != two
    assert all(map(np.isfinite, two.values()))


def test_a_projector_is_a_function(model, monkeypatch):
    """Twice a known projector: K and the inner products are four times as large, so the damped scores stay."""

    def doubled(gradients: dict[str, torch.Tensor], dim: int, seed: int, tables: Tables) -> torch.Tensor:
        return 2 * PROJECTORS["mask"](gradients, dim, seed, tables)

    monkeypatch.setitem(PROJECTORS, "doubled", doubled)
    known, added = (scores(model, projector=ct.Projector(kind, dim=64)) for kind in ("mask", "doubled"))
    assert any(known.values())
    assert added == pytest.approx(known, rel=1e-3, abs=1e-3 * max(map(abs, known.values())))


FAMILY = """
from concept_trak.attribution.denoiser import Denoiser
from tests.toys import Toy


class Own(Toy):
    def __init__(
        self, path, parameters, negative, combinations, device, dtype, adapters, resolution, offload, frames
    ) -> None:
        super().__init__(parameters)
        self.negative, self.combinations, self.path = "other_label", ("0", "1", "2"), path


PIPELINES: dict[str, type[Denoiser]] = {"OwnPipeline": Own}
"""


def test_a_family_is_a_file(tmp_path, added):
    added(concept_trak.models, "own", FAMILY)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "OwnPipeline"}')
    attributor = ct.Attributor(ct.load_model(str(tmp_path / "model")), method=quick(), projector=ct.Projector(dim=64))
    pixels = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    attributor.fit(pixels, ["0", "1", "2"])
    result = attributor.score(ct.Concept("one", labels="1", without_labels="2", samples=1))
    assert len(result.top(3)) == 3
    assert np.isfinite(result.scores).all()


def threads(stage: str, worker: type, settings: Any, tasks: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Two threads, each with a worker of its own."""
    own = threading.local()

    def work(task: Any) -> Any:
        if not hasattr(own, "worker"):
            own.worker = worker(settings)
        return own.worker(task, FirstAttempt())

    with ThreadPoolExecutor(2) as pool:
        yield from zip(tasks, pool.map(work, tasks), strict=True)


def test_a_format_is_a_file_and_an_executor_is_a_mapper(tmp_path, lines, added):
    """A whole audit of a new format on a new executor."""
    body = next(body for body in blocks("docs/extending.md", "python") if "FORMAT = " in body)
    added(concept_trak.data, "json_lines", body)
    config = ct.AuditConfig(
        store=str(tmp_path / "store"),
        audit="jsonl",
        model=ModelConfig(path=str(ROOT / "assets/demo")),
        data=DataConfig(uri=str(lines)),
        methods={"quick": quick()},
        projector=ct.Projector(dim=64),
        concepts=(RED,),
        top=3,
        shown=1,
    )
    ct.run_audit(config, mapper=threads)
    audit = ct.open_audit(config.store, "jsonl")
    top = [row for row in audit.top("red").to_pylist() if (row["form"], row["end"]) == ("damped", "top")]
    assert sorted(row["caption"] for row in top) == sorted(CAPTIONS)
    assert len({row["score"] for row in top}) == 3
