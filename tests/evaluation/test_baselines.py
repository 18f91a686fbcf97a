"""Rankings that need no gradient, on a tiny model and hand-made pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.audit.results import shows
from concept_trak.data.benchmarks.synthetic import arrays
from concept_trak.data.benchmarks.two_factors import EMOJI_OBJECTS, SHAPES3
from concept_trak.data.sample import Sample
from concept_trak.evaluation.baselines import (
    BaselineInputs,
    activation_similarity,
    caption_lookup,
    concept_agnostic,
    pixel_similarity,
    position_mean,
    position_statistics,
    random_order,
    style_similarity,
    word_overlap,
)
from concept_trak.evaluation.retrieval import Cell, cell_concept, grade
from concept_trak.evaluation.training.loop import unit_range
from concept_trak.models import load_model, small
from concept_trak.models.gaussian import Gaussian
from tests.tolerances import BATCH32

SHAPE, COLOUR = (
    cell_concept(Cell(("triangle", "red"), f, True), SHAPES3, True, 3, truth="shown") for f in SHAPES3.columns
)
SAID = cell_concept(Cell(("triangle", "red"), "colour", True), SHAPES3, True, 3, truth="both")


@pytest.fixture(scope="module", params=["pixels", "patches"])
def denoiser(request, tmp_path_factory) -> Denoiser:
    folder = tmp_path_factory.mktemp(request.param)
    {"pixels": small.pixel_pipeline, "patches": small.patch_pipeline}[request.param](0, resolution=16).save_pretrained(
        folder
    )
    return load_model(str(folder))


def drawn(count: int, wrong: float = 0.0) -> list[Sample]:
    images, drawings = arrays(0, 0, count, SHAPES3, 16, wrong)
    labels = [
        {
            "shape": d.image_pair[0],
            "colour": d.image_pair[1],
            "said_shape": d.caption_pair[0],
            "said_colour": d.caption_pair[1],
        }
        for d in drawings
    ]
    seen = zip(unit_range(torch.from_numpy(images)), drawings, labels, strict=True)
    return [Sample(d.id, d.caption, x, i, said) for i, (x, d, said) in enumerate(seen)]


def sight(denoiser: Denoiser, train: list[Sample], seed: int = 0) -> BaselineInputs:
    return BaselineInputs(denoiser, train, seed)


def graded(train: list[Sample], scores, concept) -> np.ndarray:
    relevant = np.array([shows(concept, s.labels) for s in train])
    assert 0.1 < relevant.mean() < 0.5
    return grade(scores.double().numpy(), relevant, [s.id for s in train]).average_precision - relevant.mean()


def blind(train: list[Sample], seed: int = 0) -> BaselineInputs:
    """For baselines that use no picture: this model has no images, and would fail if it were run."""
    return sight(Gaussian(), train, seed)


def test_random_is_near_the_base_rate_and_never_the_same():
    """E[AP] of a random order of 300 lies about (1 - base) ln(300) / 300 = 0.013 above the base rate."""
    train = drawn(300)
    scores = random_order(blind(train), COLOUR, 60)
    gains = graded(train, scores, COLOUR)
    assert abs(gains.mean() - 0.013) < 4 * gains.std() / 60**0.5 + 0.005
    assert not torch.equal(scores, random_order(blind(train), SHAPE, 60)), "every concept has the same luck"
    assert not torch.equal(scores, random_order(blind(train, seed=1), COLOUR, 60))
    assert torch.corrcoef(scores.T).fill_diagonal_(0).abs().max() < 0.3, "every query has the same luck"
    torch.testing.assert_close(random_order(blind(train[::-1]), COLOUR, 60), scores.flip(0), rtol=0, atol=0)


def test_the_agnostic_cap_ranks_pairs_first_and_knows_not_which_factor_is_asked():
    train = drawn(60)
    shown = [(s.labels["shape"] == "triangle") + (s.labels["colour"] == "red") for s in train]
    for concept in (SHAPE, COLOUR):
        scores = concept_agnostic(blind(train), concept, 5)
        assert scores.floor().T.int().tolist() == [shown] * 5, "only chance may differ within one number of factors"
    both = [*train, replace(train[0], id="pair", labels={"shape": "triangle", "colour": "red"})]
    assert (concept_agnostic(blind(both), SHAPE, 5).argmax(0) == 60).all()
    assert torch.equal(
        concept_agnostic(blind(train), SHAPE, 5).floor(), concept_agnostic(blind(train), COLOUR, 5).floor()
    )


def test_the_agnostic_cap_looks_at_pictures_not_at_captions():
    train = [replace(s, labels=s.labels | {"said_shape": "triangle", "said_colour": "red"}) for s in drawn(20)]
    shown = [(s.labels["shape"] == "triangle") + (s.labels["colour"] == "red") for s in train]
    assert concept_agnostic(blind(train), SHAPE, 1).floor()[:, 0].int().tolist() == shown


def test_lookup_finds_the_word():
    train = drawn(80)
    for concept in (SHAPE, COLOUR):
        relevant = np.array([shows(concept, s.labels) for s in train])
        found = grade(caption_lookup(blind(train), concept, 4).numpy(), relevant, [s.id for s in train])
        assert (found.average_precision == 1).all()


def test_lookup_follows_the_caption_where_it_is_wrong():
    train = drawn(200, wrong=0.3)
    named = np.array(["red" in s.caption.split() for s in train])
    red = np.array([s.labels["colour"] == "red" for s in train])
    assert (named != red).any()
    ranking = np.argsort(-caption_lookup(blind(train), SAID, 1)[:, 0].numpy())
    assert named[ranking[: named.sum()]].all(), "lookup looked at the picture"
    relevant = np.array([shows(SAID, s.labels) for s in train])
    assert (relevant == (named & red)).all()
    gains = grade(caption_lookup(blind(train), SAID, 8).numpy(), relevant, [s.id for s in train]).average_precision
    assert gains.max() < 1, "wrong captions do it no harm"
    assert gains.mean() == pytest.approx((named & red).sum() / named.sum(), abs=0.15)


def test_words_count_those_that_prompt_and_caption_share():
    captions = ("a red triangle", "a red circle", "red", "a triangle", "blue")
    train = [replace(sample, caption=caption) for sample, caption in zip(drawn(5), captions, strict=True)]
    assert word_overlap(blind(train), COLOUR, 2).floor()[:, 1].tolist() == [
        len({"a", *COLOUR.text.split()} & set(caption.split())) for caption in captions
    ]


def test_lookup_takes_whole_words():
    train = [replace(drawn(1)[0], id=i, caption=c) for i, c in (("a", "a bored cat"), ("b", "a red cat"))]
    assert caption_lookup(blind(train), COLOUR, 1).floor()[:, 0].tolist() == [0, 1], (
        "'red' was found inside another word"
    )


def with_the_queries_own(denoiser: Denoiser) -> tuple[BaselineInputs, int]:
    """Training samples of which the last three are the images that the concept's queries generate, and their place."""
    train = drawn(10)
    made = denoiser.to_pixels(sight(denoiser, train).generated(COLOUR, 3).x_0)
    twins = [Sample(f"twin-{i}", COLOUR.text, x, i, train[0].labels) for i, x in enumerate(made)]
    return sight(denoiser, [*train, *twins]), len(train)


@pytest.mark.parametrize("baseline", [pixel_similarity, activation_similarity, style_similarity])
def test_a_querys_twin_among_the_training_samples_is_ranked_first(denoiser, baseline):
    seen, first = with_the_queries_own(denoiser)
    scores = baseline(seen, COLOUR, 3)
    assert scores.shape == (13, 3)
    for i in range(3):
        assert scores[first + i, i].item() == pytest.approx(1, abs=1e-4), "an image is not like itself"
        assert scores[:, i].argmax() == first + i
        others = scores[[j for j in range(13) if j != first + i], i]
        assert others.max() < 1 - 1e-3, "everything is alike: nothing of the picture is seen"


def test_pixels_are_less_the_training_mean(denoiser):
    """Light and constant parts, which all images share, would make every cosine near 1."""
    train = drawn(6)
    light = [replace(s, pixels=s.pixels * 0.01 + 0.9) for s in train]
    scores = pixel_similarity(sight(denoiser, light), COLOUR, 2)
    x_0 = torch.stack([s.pixels for s in light]).flatten(1).double()
    q = sight(denoiser, light).generated(COLOUR, 2).x_0.flatten(1).double()
    a, b = x_0 - x_0.mean(0), q - x_0.mean(0)
    by_hand = torch.tensor([[(u @ v / (u.norm() * v.norm())).item() for v in b] for u in a]).double()
    torch.testing.assert_close(scores, by_hand, rtol=BATCH32, atol=1e-6)


def test_an_activation_is_the_pictures_own_and_not_its_batchs(denoiser):
    one = sight(denoiser, drawn(7))
    whole, apart = one.middle_activations(one.batch), one.middle_activations(one.batch, at_once=2)
    assert whole.shape[0] == 7
    assert whole.dim() == 2
    torch.testing.assert_close(apart, whole, rtol=BATCH32, atol=BATCH32 * whole.abs().max().item())
    distance = torch.cdist(whole, whole).fill_diagonal_(torch.inf)
    assert distance.min() > 1e-3 * whole.norm(dim=1).mean(), "two pictures look the same to the network's middle"
    assert not denoiser.middle._forward_hooks, "the hook outlives its use"


def test_statistics_are_of_channels_over_positions_and_know_no_place():
    """A convolutional map and the same as patches have the same; so has one whose positions change places."""
    out = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patches = out.flatten(2).mT
    expected = torch.cat([out.mean((2, 3)), out.var((2, 3), correction=0).sqrt()], 1)
    for shape in (out, patches, patches.flip(1)):
        torch.testing.assert_close(position_statistics(shape), expected)
    torch.testing.assert_close(position_mean(patches), position_mean(out))


def test_what_a_query_generates_is_the_same_for_every_baseline_and_longer_run(denoiser):
    one = sight(denoiser, drawn(2))
    few, more = one.generated(COLOUR, 2), one.generated(COLOUR, 3)
    torch.testing.assert_close(more.x_0[:2], few.x_0, rtol=1e-3, atol=1e-3)
    assert few.ids == more.ids[:2]
    assert torch.equal(one.generated(SHAPE, 2).x_0, few.x_0), "both factors of a pair are asked about the same images"
    for other in (replace(COLOUR, prompt="a blue square"), replace(COLOUR, seed=1)):
        assert not torch.allclose(one.generated(other, 2).x_0, few.x_0, atol=1e-3), "images of another question"


def test_a_name_of_two_words_is_looked_up_as_a_whole():
    captions = ("a noto lion face", "a noto face", "a fluent lion", "a face lion", "a fluent lion face")
    things = ("lion face", "face", "lion", "", "lion face")
    train = [
        Sample(str(i), caption, torch.zeros(3, 1, 1), i, {"object": thing, "style": "noto"})
        for i, (caption, thing) in enumerate(zip(captions, things, strict=True))
    ]
    cell = Cell(("lion face", "noto"), "object", False)
    concept = cell_concept(cell, EMOJI_OBJECTS, True, 3, truth="shown")
    assert cell.name == concept.name == "lion_face_in_noto_lion_face"
    assert caption_lookup(blind(train), concept, 1).floor()[:, 0].tolist() == [1, 0, 0, 0, 1]
    assert concept_agnostic(blind(train), concept, 1).floor()[:, 0].tolist() == [2, 2, 2, 1, 2]
