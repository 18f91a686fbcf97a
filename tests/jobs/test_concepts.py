"""Concepts as people ask them, through a whole audit: log, results and page tell what was asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from concept_trak.attribution.concept import Concept, Phrasing
from concept_trak.attribution.features import Features
from concept_trak.attribution.query import phrasing_features
from concept_trak.audit.query_features import agreement
from concept_trak.config import AuditConfig, build
from concept_trak.data.benchmarks import synthetic
from concept_trak.data.image import read_examples, read_file
from jobs.audit import AuditRunConfig, audit
from jobs.execute import ClusterConfig
from tests.jobs.world import RESOLUTION, Found
from tests.toys import Toy

CLASSIFIER = Path(__file__).resolve().parents[2] / "assets/demo/classifier.safetensors"
SAID = "samples: 2, truth: {colour: red}"
SERIAL = AuditRunConfig(ClusterConfig(kind="serial"))
SHORT = (
    "model.batch=2", "model.parameters=cross_attention", "methods.caption_trak.train.times=[500]",
    "methods.caption_trak.query.points=6", "methods.caption_trak.query.every=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of red drawings, larger than the model's, with a file that is none of them."""
    folder = tmp_path_factory.mktemp("pictures")
    found = (synthetic.draw_labelled(5, i, resolution=2 * RESOLUTION) for i in range(60))
    for drawing in [d for d in found if d.image_pair[1] == "red"][:3]:
        drawing.image.save(folder / f"{drawing.id}.png")
    (folder / "notes.txt").write_text("red things")
    return folder


@pytest.fixture(scope="module")
def concepts(pictures) -> str:
    """Four concepts of the pixel model, as they stand on the command line."""
    asked = (
        f"{{name: minus, prompt: a red triangle, minus: red, {SAID}}}",
        "{name: words, prompt: a red triangle, minus: red, samples: 3, phrasings: [{prompt: a red circle}, "
        "{prompt: red, without_prompt: blue}]}",
        f"{{name: pictures, examples: [{pictures}], {SAID}}}",
        f"{{name: judged, classifier: {CLASSIFIER}, shows: red, {SAID}}}",
    )
    return f"concepts=[{', '.join(asked)}]"


@pytest.fixture(scope="module")
def asked(world, concepts, tmp_path_factory) -> Found:
    return world.audit(tmp_path_factory.mktemp("asked"), concepts, *SHORT, model="pixels", data="few")


def test_every_way_of_asking_is_told(asked, pictures):
    assert asked.code == 0
    told = json.loads((asked.folder / "metrics.json").read_text())
    assert set(told["concepts"]) == {"minus", "pictures", "judged"}
    questions = told["questions"]
    assert questions["minus"] == {
        "question": "'a red triangle' without it: 'a triangle' (minus 'red', written out)",
        "conditions": [{"prompt": "a red triangle", "without": "a triangle"}],
        "agreement": {},
    }
    assert [c["without"] for c in questions["words"]["conditions"]] == ["a triangle", "a circle", "blue"]
    (cosines,) = questions["words"]["agreement"].values()
    assert len(cosines) == 3
    assert all(-1 <= c <= 1 for c in cosines)
    assert questions["pictures"]["question"] == f"what the pictures in {pictures} share"
    assert {name: own["examples"] for name, own in told["certainty"].items()} == {
        "minus": 0, "words": 0, "pictures": 3, "judged": 0
    }  # fmt: skip
    assert questions["judged"]["question"] == f"what {CLASSIFIER} takes for 'red'"
    page = (asked.folder / "report.html").read_text()
    for words in ("a circle", "what the pictures in", "takes for &#39;red&#39;", "agreement"):
        assert words in page, f"{words!r} is not on the page"


def test_phrasings_count_alike_however_many_samples_each_has():
    phi = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0], [3.0, 0.0], [0.0, 4.0]])
    concept = Concept("c", "a", "b", phrasings=(Phrasing("d", "e"), Phrasing("f", "g")), samples=5)
    ways = phrasing_features(Toy(), concept, Features(phi, torch.ones(5), torch.ones(5, dtype=torch.int64)))
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
    assert audit(build(AuditConfig, settings | {"store": str(asked.store)}), SERIAL) == 0
    said = capsys.readouterr().out
    assert "concept    minus: 'a red triangle' without it: 'a triangle' (minus 'red', written out)" in said
    assert "phrasings agree to" in said
    assert "no gradient work done" in said


def test_a_preflight_asks_one_way_with_one_sample(world, concepts, tmp_path, capsys):
    """A concept in three phrasings cannot be split over less than three samples, and a preflight takes one."""
    first = "concepts=[" + concepts[concepts.index("{name: words") : concepts.index(", {name: pictures")] + "]"
    assert world.audit(tmp_path, first, *SHORT, "preflight=true", model="pixels", data="few").code == 0
    assert "1 query end to end" in capsys.readouterr().out


def test_examples_that_changed_under_an_audit_are_another_question(asked, concepts, pictures, refused):
    more = pictures / "more.png"
    Image.new("RGB", (32, 32), "red").save(more)
    try:
        said = refused(concepts, *SHORT, store=asked.store, model="pixels", data="few")
    finally:
        more.unlink()
    assert "begun with other settings: evidence.pictures" in said


@pytest.mark.parametrize(
    ("concept", "chosen", "message"),
    [
        ("prompt: red, examples: [a]", {}, "prompt and examples ask in different ways"),
        ("prompt: [red]", {}, "concepts.0.prompt=['red']: input should be a valid string"),
        ("prompt: red, phrasings: [{promt: crimson}]", {}, "unknown key concepts.0.phrasings.0.promt (did you mean p"),
        ("examples: [{pictures}]", {"method": "d_trak"}, "needs the images of a prompt; choose a method"),
        ("examples: [/nowhere.png]", {}, "concept 'c': the image '/nowhere.png' cannot be read"),
        ("classifier: {classifier}, shows: red", {"model": "latents"}, "concept 'c': /"),
    ],
)
def test_what_cannot_be_asked_by(refused, pictures, concept, chosen, message):
    said = concept.replace("{pictures}", str(pictures)).replace("{classifier}", str(CLASSIFIER))
    assert message in refused(f"concepts=[{{name: c, {said}}}]", **({"model": "pixels"} | chosen))


def test_examples_that_cannot_be_taken(pictures, tmp_path):
    Image.new("RGB", (RESOLUTION - 1, 90)).save(tmp_path / "small.png")
    (tmp_path / "empty").mkdir()
    assert len(read_examples([str(pictures)], RESOLUTION)) == 3, "the note beside the pictures was taken for one"
    for path, message in (
        (f"{tmp_path}/small.png", "has 15 x 90 pixels and the model draws 16 x 16"),
        (f"{tmp_path}/empty", "are 0 pictures; expected 1 to 256"),
        (f"{pictures}/notes.txt", "notes.txt' cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_examples([path], RESOLUTION)
    with pytest.raises(ValueError, match=r"'/nowhere' cannot be read .*; give a \.safetensors file"):
        read_file("/nowhere")
