"""The judge of the two-factor benchmark, and the shipped model before it."""

from pathlib import Path

import pytest
import torch

from concept_trak import UserError
from concept_trak.data.benchmarks.synthetic import draw_labelled
from concept_trak.data.benchmarks.two_factors import SETS, SHAPES3
from concept_trak.evaluation import judge
from concept_trak.models import load_model

DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"


def test_the_shipped_judge_is_right_about_fresh_drawings():
    classifier = judge.load_classifier(DEMO / "classifier.safetensors")
    pixels, labels = judge.labelled_drawings(seed=12345, first=0, count=600)
    thing, colour = (logits.argmax(1) for logits in classifier(pixels))
    right = ((thing == labels[:, 0]) & (colour == labels[:, 1])).float().mean()
    assert right >= 0.98, "the drawings changed after the judge was trained: run jobs.train again"


def test_the_shipped_model_draws_what_it_is_asked():
    classifier, denoiser = judge.load_classifier(DEMO / "classifier.safetensors"), load_model(str(DEMO))
    shares = judge.prompt_accuracy(classifier, denoiser, [("circle", "blue"), ("square", "green")], samples=8, seed=3)
    assert min(shares.values()) >= 7 / 8, f"jobs.train and this test sample differently: {shares}"


def test_presences_of_all_combinations_sum_to_one():
    classifier = judge.load_classifier(DEMO / "classifier.safetensors")
    pixels, _ = judge.labelled_drawings(seed=1, first=0, count=8)
    total = sum(judge.presence(classifier, pixels, *pair) for pair in SHAPES3.all_pairs)
    torch.testing.assert_close(total, torch.ones(8))


@pytest.mark.parametrize("kinds", [kinds for kinds in SETS.values() if kinds.look == "colour"], ids=lambda k: k.name)
def test_a_judge_has_a_head_for_each_factor_of_its_set(kinds):
    pixels, numbers = judge.labelled_drawings(seed=2, first=40, count=8, kinds=kinds, resolution=16)
    assert [(kinds.things[t], kinds.looks[c]) for t, c in numbers.tolist()] == [
        draw_labelled(2, index, kinds.whole(), 16).image_pair for index in range(40, 48)
    ]
    untrained = judge.Classifier(kinds)
    total = sum(judge.presence(untrained, pixels, *pair) for pair in kinds.all_pairs)
    torch.testing.assert_close(total, torch.ones(8))


def test_a_judge_of_another_set_is_refused():
    with pytest.raises(UserError, match=r"(?s)does not hold this classifier's weights .*; train it again"):
        judge.load_classifier(DEMO / "classifier.safetensors", SETS["digits"])


def test_the_judge_says_what_it_needs(tmp_path):
    classifier, pixels = judge.Classifier(), torch.zeros(1, 3, 32, 32)
    with pytest.raises(AssertionError, match="needs a thing, a colour, or both"):
        judge.presence(classifier, pixels)
    with pytest.raises(UserError, match="expected one of: red, green, blue"):
        judge.presence(classifier, pixels, colour="pink")
    with pytest.raises(UserError, match="no classifier at"):
        judge.load_classifier(tmp_path / "classifier.safetensors")
