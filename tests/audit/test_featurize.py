"""The work of one shard and of one question, called as a worker is called."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.executor import Attempt
from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.query import query_batch
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.mapper import FirstAttempt
from concept_trak.audit.prepare import Prepared, prepare
from concept_trak.audit.query_features import QueryTask, QueryWorker
from concept_trak.audit.shown_samples import ShowTask, ShowWorker
from concept_trak.data.benchmarks.synthetic import draw_labelled
from concept_trak.data.benchmarks.two_factors import SHAPES3
from concept_trak.store.codec import decode_blocks
from concept_trak.store.identity import FeatureSet, read_feature_settings
from concept_trak.store.records import read_part
from tests.jobs.world import RESOLUTION, World, altered, build
from tests.tolerances import BATCH32, EXACT64, STORED16

FIRST = Attempt(1, 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def prepared(world, tmp_path) -> Prepared:
    return prepare(world.config(tmp_path / "store", data="few"))


def features(p: Prepared, record) -> tuple[list[str], np.ndarray]:
    (block,) = decode_blocks(read_part(p.store, record))
    return block.ids, block.phi().astype(np.float64)


def test_a_shard_becomes_a_part_and_its_record(prepared):
    (record,) = FeaturizeWorker(prepared.work)(
        FeaturizeTask(("caption_trak",), prepared.plan[1]), Attempt(3, 0)
    ).records
    assert (record.shard, record.rows, record.rejected, record.attempt) == (prepared.plan[1].name, 8, 0, 3)
    ids, phi = features(prepared, record)
    assert ids == [f"shapes-{i:06d}" for i in range(8, 16)], "rows stand in the order of the source"
    assert record.sum_squares == pytest.approx((phi**2).sum(), rel=STORED16)


def test_who_waits_hears_of_each_state_of_a_batch_until_all_samples_are_done(world, tmp_path):
    """Two batches of at most four samples; a reject counts when it is read. The reports sum to the samples."""

    def spoil(rows):
        rows[2]["image"]["bytes"] = b"no image"

    data = altered(world, tmp_path / "one-broken", spoil)
    p = prepare(world.config(tmp_path / "store", f"data.uri={data}", "model.batch=4"))
    task, reports = FeaturizeTask(("caption_trak",), p.plan[0]), []
    (record,) = FeaturizeWorker(p.work)(task, Attempt(1, 0, reports.append)).records
    assert (record.rejected, record.rows) == (1, 7)
    assert sum(reports) == pytest.approx(task.samples)
    states = len(p.config.methods["caption_trak"].train.states)
    assert [report for report in reports if report] == [1] + [4 / states] * states + [3 / states] * states
    assert FeaturizeWorker(p.work)(task, FirstAttempt()).records == (record,), "a part that is there reports nothing"


def test_the_negatives_of_batches_of_one_size_are_encoded_once(world, tmp_path, monkeypatch):
    p = prepare(world.config(tmp_path / "store", "model.batch=2", data="few"))
    worker, texts = FeaturizeWorker(p.work), []
    encode = worker.denoiser.encode
    monkeypatch.setattr(worker.denoiser, "encode", lambda batch: texts.append(tuple(batch)) or encode(batch))
    worker(FeaturizeTask(("caption_trak",), p.plan[0]), FIRST)
    assert len(texts) == 5, "the captions of four batches, and the negatives"
    assert texts.count(("", "")) == 1


def test_a_query_reports_its_own_samples(prepared):
    reports, question = [], replace(prepared.queries[0], methods=("caption_trak",))
    QueryWorker(prepared.work)(question, Attempt(1, 0, reports.append))
    assert sum(reports) == pytest.approx(question.samples)
    assert question.samples == question.concept.count > 1


def test_methods_on_the_same_states_are_computed_together(world, tmp_path, monkeypatch):
    """One encoding and one forward a state serve all of them, each commits a part of its own, and their numbers are
    those of one alone; a second attempt computes only what is missing."""
    names = ("trak", "das", "caption_trak")
    methods = {name: replace(METHODS[name], train=replace(METHODS[name].train, times=(300, 700))) for name in names}
    exact = ("model.precision=float64", "feature.dtype=float32")
    p, other = (
        prepare(replace(world.config(tmp_path / name, *exact, data="few"), methods=methods))
        for name in ("one", "other")
    )
    worker, forwards, encodings = FeaturizeWorker(p.work), [], []
    worker.denoiser.network.register_forward_hook(lambda *_: forwards.append(1))
    for name in ("encode", "to_latent"):
        own = getattr(worker.denoiser, name)
        monkeypatch.setattr(
            worker.denoiser, name, lambda values, name=name, own=own: encodings.append(name) or own(values)
        )
    records = worker(FeaturizeTask(names, p.plan[0]), FIRST).records
    assert [r.fingerprint for r in records] == [p.work.fingerprints[m] for m in names]
    assert sorted(encodings) == ["encode", "encode", "to_latent"], "captions, negatives and images, once for all rows"
    assert len(forwards) == 2 * 2, "two states: one evaluation for all three rows, and one of the caption's negative"
    for name, record in zip(names, records, strict=True):
        (alone,) = FeaturizeWorker(other.work)(FeaturizeTask((name,), other.plan[0]), FIRST).records
        one, together = features(other, alone), features(p, record)
        assert one[0] == together[0]
        np.testing.assert_allclose(together[1], one[1], rtol=STORED16, atol=STORED16 * np.abs(one[1]).max())
    forwards.clear()
    assert worker(FeaturizeTask(names, p.plan[0]), Attempt(2, 0)).records == records
    assert not forwards, "a worker that died was done, and its shard is computed again"


def test_half_a_batch_gives_the_same_features(world, tmp_path):
    """Memory that ran out twice: batches of 2 instead of 8. In float64, for a reward is a small difference."""
    exact = ("model.precision=float64", "feature.dtype=float32", "model.batch=8")
    prepared, other = (prepare(world.config(tmp_path / name, *exact, data="few")) for name in ("one", "other"))
    assert [FeaturizeWorker(other.work).batch_size(Attempt(1, halvings)) for halvings in (0, 1, 3, 9)] == [8, 4, 1, 1]
    whole = features(
        prepared, *FeaturizeWorker(prepared.work)(FeaturizeTask(("caption_trak",), prepared.plan[0]), FIRST).records
    )
    halved = features(
        other, *FeaturizeWorker(other.work)(FeaturizeTask(("caption_trak",), other.plan[0]), Attempt(3, 2)).records
    )
    assert whole[0] == halved[0]
    error = np.linalg.norm(whole[1] - halved[1], axis=1) / np.linalg.norm(whole[1], axis=1)
    assert error.max() < BATCH32, "a feature depends on its batch mates"


def test_a_worker_that_sees_another_model_refuses_to_work(prepared):
    settings = read_feature_settings(prepared.store, prepared.work.features["caption_trak"]).settings
    other = settings | {"model": settings["model"] | {"text_encoder": "0"}}
    expected = FeatureSet.of(other)
    work = replace(prepared.work, features={"caption_trak": expected})
    unseen = f"not the one of the features {expected.fingerprint} of caption_trak: .* has no {expected.settings_file}"
    with pytest.raises(UserError, match=unseen):
        FeaturizeWorker(work)
    prepared.store.create(expected.settings_file, json.dumps({"settings": other, "shard_rows": 8}).encode())
    with pytest.raises(UserError, match=r"of caption_trak: model\.text_encoder: nothing here, .* there.*put the model"):
        FeaturizeWorker(work)


def test_gradients_that_are_not_finite_are_rejects(world, tmp_path):
    p = prepare(world.config(tmp_path / "store", "model.batch=1", data="few"))
    worker, querier = FeaturizeWorker(p.work), QueryWorker(p.work)
    for each in (worker, querier):  # a file with such weights is refused when it is read
        each.denoiser.network.conv_out.bias.data.fill_(torch.inf)
    (record,) = worker(FeaturizeTask(("caption_trak",), p.plan[0]), FIRST).records
    assert (record.rows, record.rejects_by_reason) == (0, {"not_finite": 8})
    with pytest.raises(UserError, match="concept 'triangle'"):
        querier(p.queries[0], FIRST)


def test_a_question_is_the_mean_over_its_samples(world, tmp_path):
    prepared = prepare(world.config(tmp_path, "model.precision=float64", data="few"))
    worker, (question,) = QueryWorker(prepared.work), prepared.queries
    (answer,) = worker(question, FIRST).queries
    method, denoiser = prepared.config.methods["caption_trak"], worker.denoiser
    batch = query_batch(denoiser, question.concept)
    alone = [
        compute_features(
            denoiser, prepared.config.projector, method.query_spec, batch.rows(slice(i, i + 1)), question.concept.seed
        )
        for i in range(question.concept.samples)
    ]
    expected = torch.cat([f.phi for f in alone]).double().mean(0)
    assert (torch.tensor(answer.phi, dtype=torch.float64) - expected).norm() < EXACT64 * expected.norm()
    (halved,) = worker(question, Attempt(1, 5)).queries
    assert (torch.tensor(halved.phi, dtype=torch.float64) - expected).norm() < EXACT64 * expected.norm(), (
        "phi_q depends on the batch"
    )


def test_a_question_shows_its_own_images(prepared):
    worker, (question,) = QueryWorker(prepared.work), prepared.queries
    for shown in (1, 8):
        pictures = worker(replace(question, picture_count=shown), FIRST).queries[0].pictures
        assert len(pictures) == min(shown, question.concept.samples)
        assert {Image.open(io.BytesIO(p)).size for p in pictures} == {(RESOLUTION, RESOLUTION)}


def test_methods_that_share_their_states_share_a_query_and_its_pictures(world, tmp_path):
    """Together they have the numbers and the pictures that each has alone, and cost what one costs."""
    prepared = prepare(world.config(tmp_path, data="few", method="[caption_trak,fit_trak]"))
    ((question,), worker, forwards) = prepared.queries, QueryWorker(prepared.work), []
    alone = [QueryWorker(prepared.work)(replace(question, methods=(m,)), FIRST).queries[0] for m in question.methods]
    worker.denoiser.network.register_forward_hook(lambda *_: forwards.append(1))
    together = worker(question, FIRST).queries
    cost = len(forwards)
    assert [query.method for query in together] == list(question.methods) == ["caption_trak", "fit_trak"]
    for own, shared in zip(alone, together, strict=True):
        assert (own.pictures, own.fit, own.agreement) == (shared.pictures, shared.fit, shared.agreement)
        np.testing.assert_array_equal(own.phi, shared.phi)
        np.testing.assert_array_equal(own.halves, shared.halves)
    other = replace(question, methods=("fit_trak",), concept=replace(question.concept, seed=7))
    assert worker(other, FIRST).queries[0].pictures != together[0].pictures
    assert len(forwards) == 2 * cost, "two methods cost more than one"
    worker(replace(question, methods=("caption_trak",)), FIRST)
    assert len(forwards) < 3 * cost, "the pictures of a concept are drawn again for another method"


def test_a_question_about_one_image_stands_on_its_inversion(prepared):
    buffer = io.BytesIO()
    image = draw_labelled(0, 7, SHAPES3.whole(), RESOLUTION).image
    image.save(buffer, "PNG")
    concept = Concept("here", prompt="a red triangle", without_prompt="red", scope="local", image="one.png")
    task = QueryTask(("caption_trak",), concept, buffer.getvalue())
    (answer,) = QueryWorker(prepared.work)(task, FIRST).queries
    (picture,) = answer.pictures
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), np.asarray(image))
    assert np.linalg.norm(answer.phi) > 0


def test_conditions_that_the_model_reads_alike_have_no_direction(prepared):
    concept = Concept("same", prompt="a red triangle", without_prompt="A  red triangle", samples=1)
    with pytest.raises(ValueError, match=r"concept 'same': the model predicts the same for .*change the prompts"):
        QueryWorker(prepared.work)(QueryTask(("caption_trak",), concept), FIRST)


def test_a_question_whose_numbers_are_not_finite_is_called_so(prepared):
    """And the prompts are not blamed: overflow in half precision looked like two equal conditions."""
    worker, (question,) = QueryWorker(prepared.work), prepared.queries
    with torch.no_grad():
        next(iter(worker.denoiser.parameters.values())).fill_(float("nan"))
    with pytest.raises(UserError, match=rf"concept '{question.concept.name}': its feature is not finite: .* overflow"):
        worker(question, FIRST)


def test_only_the_samples_of_the_page_are_drawn(prepared):
    ids = ("shapes-000003", "shapes-000001")
    seen = ShowWorker(prepared.work)(ShowTask(prepared.plan[0], ids, frozenset(ids[:1]), RESOLUTION), FIRST).samples
    assert {s.sample_id: bool(s.png) for s in seen} == {"shapes-000001": False, "shapes-000003": True}
    one = next(s for s in seen if s.png)
    drawing = draw_labelled(0, 3, resolution=RESOLUTION)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(one.png))), np.asarray(drawing.image))
    assert (one.row, one.caption, one.labels) == (
        3,
        drawing.caption,
        dict(zip(("shape", "colour"), drawing.image_pair, strict=True)),
    )
