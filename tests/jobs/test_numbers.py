"""The numbers on storage against a second computation from what lies beside them."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from concept_trak.audit.comparison import Overlap
from concept_trak.audit.featurize import FeaturizeWorker
from concept_trak.audit.index import IndexReader
from concept_trak.audit.prepare import prepare
from concept_trak.data.benchmarks.synthetic import draw_labelled
from concept_trak.data.benchmarks.two_factors import SHAPES3
from concept_trak.data.sample import Sample, samples
from concept_trak.report.answer_in_words import overlap_line
from tests.jobs.world import CONCEPT, RESOLUTION, Found
from tests.tolerances import DENSE32, STORED16


def dense(found: Found, method: str, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """K and the scores w_i phi_i . (K + lambda I)^-1 phi_q, in float64, with every feature in memory."""
    _, weight, phi = found.features(method)
    matrix = phi.T @ phi
    k = len(matrix)
    z = np.linalg.solve(matrix + damping * np.trace(matrix) / k * np.eye(k), np.array(found.query(method)["phi"]))
    return matrix, weight * (phi @ z)


@pytest.mark.parametrize(
    ("method", "k"),
    [("das", 8), ("caption_trak", 64), pytest.param("caption_trak", 8, marks=pytest.mark.soak)],
    ids=str,
)
def test_scores_and_gram_are_those_of_a_dense_computation(world, tmp_path, method, k):
    """16 samples: k = 8 is solved in the primal form, k = 64 in the dual one. DAS weighs every sample."""
    found = world.audit(tmp_path, f"projector.dim={k}", "damping=0.1", method=method, data="few")
    matrix, expected = dense(found, method, 0.1)
    stored = load_file(found.folder / method / "gram.safetensors")["K"]
    assert np.abs(stored - matrix).max() < DENSE32 * np.abs(matrix).max(), "K is not the sum over all parts"
    ids, weight, phi = found.features(method)
    scores = found.scores(method)
    assert list(scores) == ids
    difference = np.abs(np.array(list(scores.values())) - expected).max()
    assert difference < DENSE32 * np.abs(expected).max(), "scores are not w phi (K + lambda I)^-1 phi_q"
    plain = np.array(list(found.scores(method, "triangle~plain").values()))
    inner = weight * (phi @ np.array(found.query(method)["phi"]))
    assert np.abs(plain - inner).max() < DENSE32 * np.abs(inner).max()
    assert found.query(method)["residual"] < DENSE32


def test_float16_features_of_small_gradients_keep_their_precision(world, tmp_path):
    """concept_b is not normalised: without a scale per row its gradients would vanish in float16."""
    ids, _, stored = world.audit(tmp_path / "stored", method="concept_b", data="few").features("concept_b")
    p = prepare(world.config(tmp_path / "exact", "model.precision=float64", method="concept_b", data="few"))
    shards = map(IndexReader(p.store), p.plan)
    ready = [s for shard in shards for s in samples(shard, p.config.data, p.resolution) if isinstance(s, Sample)]
    (made,) = FeaturizeWorker(p.work).features([p.config.methods["concept_b"]], ready)
    exact = made.phi.numpy()  # never stored
    assert ids == [s.id for s in ready]
    error = np.linalg.norm(stored - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert error.max() < STORED16, "rounding is relative to a row's norm only if the scale is applied both ways"


def test_the_authors_method_runs_on_pixels(world, tmp_path):
    found = world.audit(tmp_path, model="pixels", method="concept_trak", data="few")
    _, expected = dense(found, "concept_trak", 100)
    scores = np.array(list(found.scores("concept_trak").values()))
    assert np.abs(scores - expected).max() < DENSE32 * np.abs(expected).max()
    best = max(zip(scores, found.features("concept_trak")[0], strict=True))[1]
    assert found.top("concept_trak")[0]["sample_id"] == best


def test_methods_stand_side_by_side_and_a_concept_may_be_one_image(world, tmp_path, capsys):
    draw_labelled(0, 99, SHAPES3.whole(), RESOLUTION).image.save(tmp_path / "one.png")
    local = f"{{name: here, prompt: a red triangle, without_prompt: red, scope: local, image: {tmp_path}/one.png}}"
    found = world.audit(tmp_path / "store", f"concepts=[{CONCEPT},{local}]", method="[trak,das,concept_a]", data="few")
    assert found.code == 0
    for method in ("trak", "das", "concept_a"):
        assert {row["concept"] for row in found.top(method)} == {"triangle", "here"}
        assert np.linalg.norm(found.query(method, "here")["phi"]) > 0
    features = {method: found.features(method) for method in ("trak", "das", "concept_a")}
    np.testing.assert_array_equal(features["trak"][2], features["concept_a"][2], "one train side, one set of features")
    said = capsys.readouterr().out
    assert "concept_a: 0 of 2 shards are done, 2 to compute, shared with trak" in said
    assert "featurize  2/2" in said, "rows on the same states are computed together, and one train side once"
    assert (features["trak"][1] == 1).all()
    assert (features["das"][1] > 0).all()
    assert len(set(features["das"][1])) > 1, "DAS weighs a sample by its own error"
    assert not np.array_equal(found.query("trak", "here")["phi"], found.query("trak")["phi"])
    page = (found.folder / "report.html").read_text()
    assert all(word in page for word in ("trak", "das", "concept_a", "here", "triangle"))
    agreement = r"^  trak and das share \d+ of their first \d+; the ranks of 16 samples correlate to -?[01]\.\d\d"
    assert len(re.findall(agreement, said, re.M)) == 2, "not a line for each concept"
    overlaps = json.loads((found.folder / "metrics.json").read_text())["comparisons"]
    lines = [f"  {overlap_line(Overlap(**fields))}" for name in ("triangle", "here") for fields in overlaps[name]]
    assert [line for line in said.splitlines() if " share " in line] == lines, "not as of a question"
