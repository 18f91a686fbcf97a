"""Concepts as people ask them, through a whole audit: log, results and page tell what was asked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from concept_trak.config import AuditConfig
from concept_trak.data import synthetic
from concept_trak.query import agreement, by_turns
from jobs.audit import audit
from jobs.configure import build
from tests.jobs.world import RESOLUTION, Found

CLASSIFIER = Path(__file__).resolve().parents[2] / "assets/demo/classifier.safetensors"
SAID = "samples: 2, truth: {colour: red}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of red drawings, larger than the model's, with a file that is none of them."""
    folder = tmp_path_factory.mktemp("pictures")
    found = (synthetic.draw(5, i, resolution=2 * RESOLUTION) for i in range(60))
    for drawing in [d for d in found if d.shown[1] == "red"][:3]:
        drawing.image.save(folder / f"{drawing.id}.png")
    (folder / "notes.txt").write_text("red things")
    return folder


@pytest.fixture(scope="module")
def asked(world, pictures, tmp_path_factory) -> Found:
    """An audit of four concepts of the pixel model."""
    concepts = (
        f"{{name: minus, prompt: a red triangle, minus: red, {SAID}}}",
        "{name: words, prompt: a red triangle, minus: red, samples: 3, phrasings: [{prompt: a red circle}, "
        "{prompt: red, without_prompt: blue}]}",
        f"{{name: pictures, examples: [{pictures}], {SAID}}}",
        f"{{name: judged, classifier: {CLASSIFIER}, shows: red, {SAID}}}",
    )
    more = f"concepts=[{', '.join(concepts)}]"
    return world.audit(tmp_path_factory.mktemp("asked"), more, "model.batch=2", model="pixels", data="few")


def test_every_way_of_asking_is_told(asked, pictures):
    assert asked.code == 0
    told = json.loads((asked.folder / "metrics.json").read_text())
    assert set(told["concepts"]) == {"minus", "pictures", "judged"}
    questions = told["questions"]
    assert questions["minus"] == {
        "question": "'a red triangle' minus 'red' without it: 'a triangle'",
        "conditions": [{"prompt": "a red triangle", "without": "a triangle"}],
        "agreement": {},
    }
    assert [c["without"] for c in questions["words"]["conditions"]] == ["a triangle", "a circle", "blue"]
    (cosines,) = questions["words"]["agreement"].values()
    assert len(cosines) == 3
    assert all(-1 <= c <= 1 for c in cosines)
    assert questions["pictures"]["question"] == f"what the pictures in {pictures} share"
    assert questions["judged"]["question"] == f"what {CLASSIFIER} takes for 'red'"
    page = (asked.folder / "report.html").read_text()
    for words in ("a circle", "what the pictures in", "takes for &#39;red&#39;", "agreement"):
        assert words in page, f"{words!r} is not on the page"


def test_phrasings_count_alike_however_many_samples_each_has():
    phi = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0], [3.0, 0.0], [0.0, 4.0]])
    ways = by_turns(phi, 3)
    assert ways.tolist() == [[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]
    assert agreement(ways) == pytest.approx((0.0, -1 / 5**0.5, -3 / 13**0.5)), "cos(phi_j, the sum of the others)"
    assert agreement(ways[:1]) == ()


def test_every_way_of_asking_is_another_question(asked):
    phi = [np.array(asked.query("caption_trak", name)["phi"]) for name in ("minus", "words", "pictures", "judged")]
    unit = np.stack([one / np.linalg.norm(one) for one in phi])
    assert (np.abs(unit @ unit.T)[~np.eye(4, dtype=bool)] < 0.9999).all()


def test_the_same_command_says_what_was_asked_and_computes_nothing(asked, capsys):
    saved = yaml.safe_load((asked.folder / "audit.yaml").read_text())
    settings = {key: value for key, value in saved.items() if key not in ("fingerprints", "evidence")}
    config = build(AuditConfig, settings | {"store": str(asked.store), "cluster": {"kind": "serial"}})
    assert audit(config) == 0
    said = capsys.readouterr().out
    assert "concept    minus: 'a red triangle' minus 'red' without it: 'a triangle'" in said
    assert "phrasings agree to" in said
    assert "no gradient work done" in said


def test_examples_that_changed_under_an_audit_are_another_question(asked, world, pictures, tmp_path, refused):
    one = f"concepts=[{{name: pictures, examples: [{tmp_path}/e], {SAID}}}]"
    shutil.copytree(pictures, tmp_path / "e")
    assert world.audit(tmp_path / "store", one, model="pixels", data="few").code == 0
    Image.new("RGB", (32, 32), "red").save(tmp_path / "e/more.png")
    assert "begun with other settings: evidence.pictures" in refused(one, model="pixels", data="few")


def test_what_cannot_be_asked_by(refused, pictures, tmp_path):
    def said(concept: str, *more: str, model: str = "pixels", **chosen: str) -> str:
        return refused(f"concepts=[{{name: c, {concept}}}]", *more, model=model, **chosen)

    Image.new("RGB", (RESOLUTION - 1, 90)).save(tmp_path / "small.png")
    (tmp_path / "empty").mkdir()
    judged = f"classifier: {CLASSIFIER}"
    assert "prompt and examples ask in different ways" in said(f"prompt: red, examples: [{pictures}]")
    assert "has 15 x 90 pixels and the model draws 16 x 16" in said(f"examples: [{tmp_path}/small.png]")
    assert "are 0 pictures; expected 1 to 256" in said(f"examples: [{tmp_path}/empty]")
    assert "the image '/nowhere.png' cannot be read" in said("examples: [/nowhere.png]")
    assert f"the image '{pictures}/notes.txt' cannot be read" in said(f"examples: [{pictures}/notes.txt]")
    assert "asks about the pictures of a prompt; choose a row" in said(f"examples: [{pictures}]", method="d_trak")
    assert "knows no class 'pink'; expected one of: triangle" in said(f"{judged}, shows: pink")
    assert "train it on what the model denoises" in said(f"{judged}, shows: red", model="latents")
    assert "'/nowhere' cannot be read" in said("classifier: /nowhere, shows: red")
    assert f"{pictures}/notes.txt is no safetensors file" in said(f"classifier: {pictures}/notes.txt, shows: red")
    assert "concepts.0.prompt=['red']: input should be a valid string" in said("prompt: [red]")
    assert "unknown key concepts.0.phrasings.0.promt (did you mean prompt?)" in said(
        "prompt: red, phrasings: [{promt: crimson}]"
    )
    assert "concept 'c': minus: 'blue' is not in 'red'" in said("prompt: red, minus: blue")
