"""Queries of several methods on one path, and the pictures at its end, against each by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from concept_trak.attribution import query_paths
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.method import METHODS, Method
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import UNGUIDED, query_batch, resolve_query
from concept_trak.attribution.query_paths import query_features, query_images
from concept_trak.attribution.state import Probe, by_path
from concept_trak.attribution.trajectory import finish, generate, sampling, walk
from tests.tolerances import EXACT64
from tests.toys import Toy

P, SAMPLES = Projector("sketch", 64), 5
CONCEPT = Concept("zero", labels="0", without_labels="1", samples=SAMPLES, seed=5)


@pytest.fixture(autouse=True)
def _pictures_of_the_usual_path(monkeypatch):
    """Other tests of this process may draw theirs in fewer steps."""
    monkeypatch.setattr(query_paths, "UNGUIDED", UNGUIDED)


class Numbered(Toy):
    """Has labels 0 ... 3 only; label 3 is drawn in place of the empty condition."""

    negative = "other_label"
    combinations = ("0", "1", "2", "3")


@contextmanager
def evaluations(denoiser: Toy) -> Iterator[list[int]]:
    """The number of samples of each forward pass of the network."""
    sizes = list[int]()
    handle = denoiser.network.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    yield sizes
    handle.remove()


def test_probes_with_one_path_are_one_group():
    rows = {name: METHODS[name].query for name in ("concept_trak", "das", "fit_trak", "trak")}
    rows["guided"] = replace(METHODS["fit_trak"].query, guidance=2.0)
    assert by_path(rows) == [("concept_trak", "fit_trak"), ("das", "trak"), ("guided",)]


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("names", [("concept_trak", "caption_trak", "fit_trak"), ("trak", "das")])
def test_methods_together_have_the_features_of_each_alone_for_the_price_of_one(names, scope):
    """Equal query sides, other norms, and other directions; of generated images, they are generated once."""
    denoiser, methods = Numbered("wide|down"), [METHODS[name] for name in names]
    here = scope == "local"
    concept = replace(CONCEPT, scope=scope, image="a.png" if here else "")
    batch = query_batch(denoiser, concept, torch.zeros(1, 3, 6, 6) if here else None)
    alone, costs = [], []
    for method in methods:
        with evaluations(denoiser) as sizes:
            resolved, rows = resolve_query(denoiser, method, concept, batch)
            alone.append(compute_features(denoiser, P, resolved.query_spec, rows, concept.seed))
        costs.append(sum(sizes))
    with evaluations(denoiser) as sizes:
        together = query_features(denoiser, P, methods, concept, batch, size=SAMPLES).features
    assert sum(sizes) == max(costs)
    for own, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(shared.phi, own.phi, rtol=0, atol=EXACT64 * own.phi.abs().max().item())
        assert torch.equal(shared.states, own.states)
    assert not torch.allclose(together[0].phi, together[-1].phi), "methods that differ have one feature"


def of_path(query: Probe) -> Method:
    return replace(METHODS["concept_trak"], query=query)


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        (METHODS["fit_trak"], 5),  # its path ends at point 5 of the grid, whose prediction is known: 4, ..., 0 are left
        (METHODS["trak"], 0),  # it has generated the images
        (of_path(replace(UNGUIDED, guidance=2.0)), 51),
        (of_path(replace(UNGUIDED, points=21)), 51),
    ],
    ids=["path", "images", "guided", "coarse"],
)
def test_the_images_of_a_query_are_those_of_its_noise_and_only_what_is_missing_is_computed(method, extra):
    """Computed two samples at a time, of which three are shown."""
    denoiser = Numbered("wide|down")
    batch = query_batch(denoiser, CONCEPT)
    query = query_features(denoiser, P, [method], CONCEPT, batch, size=2)
    with evaluations(denoiser) as sizes:
        images = query_images(denoiser, CONCEPT, query, 3)
    assert sum(sizes) == 3 * extra
    expected = generate(denoiser, batch.rows(slice(0, 3)), UNGUIDED, CONCEPT.seed)
    # Images of whole-image rows are rounded to float32.
    torch.testing.assert_close(images.to(expected), expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    assert len(query_images(denoiser, CONCEPT, query, SAMPLES + 1)) == SAMPLES


@pytest.mark.parametrize("probe", [Probe("sampling", "prediction", guidance=3.0, eta=1.0, every=7), UNGUIDED])
def test_a_walk_goes_on_to_the_image_of_its_noise(probe):
    denoiser = Numbered()
    batch = query_batch(denoiser, CONCEPT)
    end = walk(sampling(denoiser, batch, probe, 3), lambda state: denoiser(state.x_t, state.t, state.batch.cond))
    expected = generate(denoiser, batch, probe, 3)
    torch.testing.assert_close(finish(denoiser, end, probe, 3), expected, rtol=EXACT64, atol=EXACT64)
    part = finish(denoiser, end.rows(slice(1, 3)), probe, 3)
    torch.testing.assert_close(part, expected[1:3], rtol=EXACT64, atol=EXACT64)
