"""Concepts that no prompt names, asked of the shipped model: the training images that show a colour come first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from concept_trak import models
from concept_trak.attribution import fisher, ranking
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.denoiser import negatives
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.method import METHODS, FeatureSpec
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import mean_latent, query_batch, resolve_query
from concept_trak.attribution.state import Batch
from concept_trak.data.benchmarks import synthetic
from concept_trak.data.image import png
from concept_trak.evaluation.training.loop import unit_range
from concept_trak.models.classifier import open_classifier
from concept_trak.models.encode import ConceptFiles, decode_pixels, open_query

DEMO = Path(__file__).resolve().parents[2] / "assets/demo"
ROWS, TIMES = 32, (500,)
P = Projector("sketch", 512)
ROW = METHODS["caption_trak"]


@pytest.fixture(scope="module")
def demo():
    return models.load_model(str(DEMO))


@pytest.fixture(scope="module")
def trained(demo):
    """phi of the first training images, with few states, and the colour each shows."""
    pixels, drawings = synthetic.arrays(0, 0, ROWS)
    ids, captions = tuple(d.id for d in drawings), [d.caption for d in drawings]
    x_0, probe = demo.to_latent(unit_range(torch.from_numpy(pixels))), replace(ROW.train, times=TIMES)
    batch = Batch(ids, demo.encode(captions), negatives(demo, ids, captions, 0), x_0)
    parts = [batch.rows(slice(i, i + 16)) for i in range(0, ROWS, 16)]
    phi = torch.cat([compute_features(demo, P, FeatureSpec(probe, ROW.unit), part, 0).phi for part in parts])
    return phi, np.array([d.image_pair[1] for d in drawings])


def pictures(colour: str, count: int = 24) -> list[bytes]:
    """Drawings of another set in one colour, whatever the shape, as files."""
    found = (synthetic.draw_labelled(99, i) for i in range(400))
    return [png(d.image) for d in found if d.image_pair[1] == colour][:count]


def average_precision(demo, trained, concept: Concept, colour: str, **given) -> tuple[float, float]:
    """AP and base rate of the damped ranking by a concept."""
    phi, colours = trained
    asked = query_batch(demo, concept, **given)
    method, asked = resolve_query(demo, ROW, concept, asked)
    method = replace(method, query=replace(method.query, points=11, every=4))
    q = compute_features(demo, P, method.query_spec, asked, concept.seed).phi.mean(0)
    z = fisher.solve_dual(phi, fisher.gram(phi).damped(100.0), q[None]).z[0]
    relevant = (colours == colour)[np.argsort(-(phi.double() @ z.double()).numpy(), kind="stable")].tolist()
    return ranking.average_precision(relevant), ranking.base_rate(relevant)


def test_examples_of_a_colour_find_it(demo, trained):
    colour = "red"
    target = mean_latent(demo, [decode_pixels(pictures(colour), demo.resolution)])
    concept = Concept("c", examples=("drawn",), samples=4)
    ap, base = average_precision(demo, trained, concept, colour, targets=target[None])
    assert ap > base + 0.4, f"AP {ap:.2f} at a base rate of {base:.2f}: a sign, or the mean of the examples, is wrong"


def test_groups_of_samples_share_no_example(demo):
    """Sample i is pulled to the mean of the examples i, i + 4, ...; one example pulls all."""
    files, concept = pictures("red")[:6], Concept("c", examples=("drawn",), samples=5)
    x_0 = decode_pixels(files, demo.resolution)
    target = open_query(demo, concept, ConceptFiles(examples=tuple(files)), size=1).target
    expected = torch.stack([x_0[[0, 4]].mean(0), x_0[[1, 5]].mean(0), x_0[2], x_0[3], x_0[[0, 4]].mean(0)])
    torch.testing.assert_close(target, expected)
    lone = open_query(demo, concept, ConceptFiles(examples=tuple(files[:1])), size=1).target
    torch.testing.assert_close(lone, x_0[:1].expand(5, -1, -1, -1))


def test_a_classifier_of_a_colour_finds_it(demo, trained):
    colour = "blue"
    path = DEMO / "classifier.safetensors"
    judge = open_classifier(path.read_bytes(), str(path), colour, demo)
    concept = Concept("c", classifier=str(path), shows=colour, samples=4)
    ap, base = average_precision(demo, trained, concept, colour, classifier=judge)
    assert ap > base + 0.4, f"AP {ap:.2f} at a base rate of {base:.2f}: a sign, or the class, is wrong"
