"""The in-memory API: the numbers of a serial audit, and every refusal with its remedy."""

import doctest
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import concept_trak as ct
from concept_trak import attributor as module
from tests.jobs.world import build

COLOURS = ("red", "green", "blue")
CAPTIONS = [f"a {colour} circle" for colour in COLOURS]
SETTINGS = ("concepts=[{name: triangle, prompt: a red triangle, without_prompt: red, samples: 2}]", "projector.dim=64")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(world):
    return ct.load_model(f"{world.root}/pixels", device="cpu")


@pytest.fixture
def attributor(model):
    return ct.Attributor(model, method=quick(), projector=ct.Projector(dim=64))


def quick() -> ct.Method:
    row = ct.METHODS["caption_trak"]
    return replace(row, train=replace(row.train, times=(300, 700)), query=replace(row.query, points=11, every=4))


def images() -> list[Image.Image]:
    return [Image.new("RGB", (20, 16), colour) for colour in COLOURS]


def test_it_agrees_with_a_serial_audit(world, model, tmp_path):
    audit = world.audit(tmp_path / "store", *SETTINGS, "feature.dtype=float32", model="pixels", data="few")
    theirs = audit.scores()
    attributor = ct.Attributor(model, method=quick(), projector=ct.Projector(dim=64))
    attributor.fit(ct.dataset(f"{world.root}/few", id_column="id"))
    concept = ct.Concept("triangle", prompt="a red triangle", without_prompt="red", samples=2)
    result = attributor.score(concept)
    ours = dict(zip(result.ids, result.scores.tolist(), strict=True))
    assert ours.keys() == theirs.keys()
    scale = max(map(abs, theirs.values()))
    assert max(abs(ours[i] - theirs[i]) for i in theirs) < 1e-4 * scale
    assert pq.read_table(audit.folder / "top.parquet").num_rows
    assert [i for i, _ in result.top(3)] == sorted(ours, key=lambda i: (-ours[i], i))[:3]


def test_every_score_lies_in_its_interval_which_one_sample_does_not_have(attributor):
    attributor.fit(images(), [f"a {colour} square" for colour in COLOURS], ids=COLOURS)
    concept = ct.Concept("red", prompt="a red square", without_prompt="a square", samples=3)
    several, single = attributor.score(concept), attributor.score(replace(concept, samples=1))
    assert (several.low < several.scores).all()
    np.testing.assert_allclose((several.low + several.high) / 2, several.scores, rtol=1e-4, atol=1e-9)
    assert np.isnan([single.low, single.high]).all()
    assert np.isfinite(single.scores).all()


def test_what_a_data_set_holds_beside_samples_is_counted_and_named(attributor, tmp_path):
    for colour, image in zip(COLOURS, images(), strict=True):
        image.save(tmp_path / f"{colour}.png")
        (tmp_path / f"{colour}.txt").write_text(f"a {colour} circle")
    (tmp_path / "notes.xyz").write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "broken.txt").write_text("a red circle")
    red = ct.Concept("red", prompt="a red circle", without_prompt="a circle", samples=1)
    result = attributor.fit(ct.dataset(str(tmp_path), caption_column="txt")).score(red)
    assert len(result.ids) == 3
    assert [(r.reason, r.source.rstrip("/").endswith(tmp_path.name)) for r in result.rejects] == [("decode", True)]
    assert sum(entry.count for entry in result.left_out) == 1
    assert result.left_out[0].names == ("notes.xyz",)


def test_pictures_and_their_pixels_give_one_answer(attributor):
    red = ct.Concept("red", prompt="a red circle", without_prompt="a circle", samples=1)
    from_pictures = attributor.fit(images(), CAPTIONS).score(red)
    pixels = torch.stack([torch.tensor(np.array(i.crop((2, 0, 18, 16)))).permute(2, 0, 1) for i in images()])
    from_pixels = attributor.fit(pixels / 127.5 - 1, CAPTIONS, ids=["a", "b", "c"]).score(red)
    assert from_pictures.ids == ("000000", "000001", "000002")
    assert from_pixels.ids == ("a", "b", "c")
    assert from_pictures.to_arrow().column_names == ["sample_id", "score", "plain"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: ([], []), "images is empty"),
        (lambda: (images(), CAPTIONS[:2]), "3 images, 2 captions and 3 ids"),
        (lambda: (images(), CAPTIONS, ["a", "b", "a"]), "'a' occurs twice"),
        (lambda: (images(), CAPTIONS, ["a", "", "b"]), "ids: one is empty"),
        (lambda: (images(), ["a red circle", "", "x"]), "the caption of '000001' is empty"),
        (lambda: (torch.zeros(3, 16, 16), CAPTIONS), "expected floats"),
        (lambda: (torch.full((3, 3, 16, 16), 255.0), CAPTIONS), r"range over 255 ... 255"),
        (lambda: (torch.zeros(3, 3, 8, 8), CAPTIONS), "images are 8 x 8 and the model's are 16 x 16"),
        (lambda: ([np.zeros((16, 16, 3))] * 3, CAPTIONS), "an image is ndarray; expected PIL images"),
    ],
)
def test_what_cannot_be_fitted(attributor, given, message):
    with pytest.raises(ct.UserError, match=message):
        attributor.fit(*given())


def test_features_that_are_all_zero_are_refused_for_the_reason_of_an_audit(model):
    """Random weights tell no picture from another, so `fit_trak` has no feature; tests/jobs/test_rejects.py has it."""
    fit_trak = replace(quick(), train=replace(ct.METHODS["fit_trak"].train, times=(300,)))
    attributor = ct.Attributor(model, method=fit_trak, projector=ct.Projector(dim=64)).fit(images(), CAPTIONS)
    red = ct.Concept("red", prompt="a red circle", without_prompt="a circle", samples=1)
    with pytest.raises(ct.UserError, match="as far as the method can tell: every feature is zero"):
        attributor.score(red)


def test_mistakes_of_a_score(attributor, model):
    concept = ct.Concept("red", prompt="a red circle", without_prompt="a circle", samples=1)
    with pytest.raises(ct.UserError, match="call fit"):
        attributor.score(concept)
    with pytest.raises(ct.UserError, match="damping=0"):
        attributor.fit(images(), CAPTIONS).score(concept, damping=0.0)
    with pytest.raises(ct.UserError, match="method='das_trak' is not known; expected recommended or one of"):
        ct.Attributor(model, method="das_trak")
    with pytest.raises(ct.UserError, match="unknown key caption_colum"):
        ct.dataset("somewhere", caption_colum="text")


def test_the_examples_of_the_docstrings_run():
    assert doctest.testmod(module).failed == 0
