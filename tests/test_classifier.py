"""The judge of the two-factor benchmark, and the shipped model before it."""

from pathlib import Path

import pytest
import torch

from concept_trak import classifier as judge
from concept_trak.data import synthetic
from concept_trak.models.text_to_image import TextToImage

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def test_the_shipped_judge_is_right_about_fresh_drawings():
    classifier = judge.load(DEMO / "classifier.safetensors")
    pixels, labels = judge.drawings(seed=12345, first=0, count=600)
    shape, colour = (logits.argmax(1) for logits in classifier(pixels))
    right = ((shape == labels[:, 0]) & (colour == labels[:, 1])).float().mean()
    assert right >= 0.98, "the drawings changed after the judge was trained: run jobs.train again"


def test_the_shipped_model_draws_what_it_is_asked():
    classifier, denoiser = judge.load(DEMO / "classifier.safetensors"), TextToImage(str(DEMO))
    shares = judge.obedience(classifier, denoiser, [("circle", "blue"), ("square", "green")], samples=8, seed=3)
    assert min(shares.values()) >= 7 / 8, f"jobs.train and this test sample differently: {shares}"


def test_presences_of_all_combinations_sum_to_one():
    classifier = judge.load(DEMO / "classifier.safetensors")
    pixels, _ = judge.drawings(seed=1, first=0, count=8)
    total = sum(judge.presence(classifier, pixels, *pair) for pair in synthetic.combinations(None))
    torch.testing.assert_close(total, torch.ones(8))


def test_the_judge_says_what_it_needs(tmp_path):
    classifier, pixels = judge.Classifier(), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="Name a shape"):
        judge.presence(classifier, pixels)
    with pytest.raises(ValueError, match="expected one of red, green, blue"):
        judge.presence(classifier, pixels, colour="pink")
    with pytest.raises(ValueError, match="no classifier at"):
        judge.load(tmp_path / "classifier.safetensors")
