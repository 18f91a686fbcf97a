"""`preflight=true`: everything is tried, the whole is reckoned, and nothing stays."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from concept_trak.attribution.concept import Concept, Phrasing
from concept_trak.audit import dry_run
from concept_trak.audit.peak_memory import PeakMemory
from concept_trak.audit.query_features import QueryResult, QueryTask
from tests.data.files import encoded
from tests.jobs.world import altered, files_under


def test_a_preflight_says_what_all_will_take_and_leaves_nothing(world, tmp_path, capsys):
    found = world.audit(tmp_path / "store", "preflight=true", "cluster.price=2", "projector.dim=32")
    assert found.code == 0
    assert {name.split("/")[0] for name in files_under(tmp_path / "store")} == {"sources"}, (
        "more than the index is left"
    )
    said = capsys.readouterr().out
    assert "2 samples and 1 query end to end: finite, and predictions do not depend on the batch" in said
    each, asking, starting, hours = (
        float(x) for x in re.findall(r"time +(\S+) s a .*, (\S+) s for 1 .*, (\S+) s until .*: (\S+) worker", said)[0]
    )
    assert hours == pytest.approx((48 * each + asking + starting) / 3600, rel=0.02)
    assert "at a batch of 8" in said, "a shard holds no more rows"
    assert float(re.search(r"worker-hours x 2 = (\S+)", said)[1]) == pytest.approx(2 * hours, rel=0.02)
    assert "64 bytes a sample and method" in said, "32 numbers in float16"
    peak = float(re.search(r"memory +(\S+) GB in the worker, at a batch", said)[1])
    assert 0.1 < peak < 20
    assert world.audit(tmp_path / "store", "projector.dim=32", data="few").code == 0, (
        "the audit it was for cannot begin"
    )


def test_a_preflight_times_as_many_together_as_do_not_take_long():
    """Seconds are of the largest number that was tried: doubled as long as twice as many are not too long."""
    tried: list[int] = []

    def work(n: int) -> None:
        tried.append(n)

    assert dry_run.timed(work, 6)[1] == 6
    assert tried == [1, 2, 4, 6]
    assert dry_run.timed(work, 1000)[1] == dry_run.MOST
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "LONG", 0.0)
        assert dry_run.timed(work, 12)[1] == 1


def test_a_question_takes_its_samples_and_the_pictures_that_are_shown():
    pace = dry_run.DryRunQueryResult(QueryResult(()), sample=2.0, picture=5.0, peak=PeakMemory(0))
    concept = Concept("c", "a", "b", samples=16, phrasings=(Phrasing("d"), Phrasing("e")))
    assert pace.seconds(QueryTask(("m",), concept, picture_count=8)) == 16 * 2 + 8 * 5
    here = replace(concept, scope="local", image="a.png")
    assert pace.seconds(QueryTask(("m",), here, picture_count=8)) == 3 * 2 + 3 * 5, (
        "each phrasing asks about the image once"
    )


def test_a_preflight_passes_over_rejects_and_reads_any_format(world, tmp_path, capsys):
    data = altered(world, tmp_path / "data", lambda rows: [row.update(caption="") for row in rows[:3]])
    assert world.audit(tmp_path / "store", "preflight=true", f"data.uri={data}").code == 0
    assert "preflight  2 samples" in capsys.readouterr().out
    for n in range(3):
        (tmp_path / "images/red").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"images/red/{n}.png").write_bytes(encoded(Image.new("RGB", (20, 20), (80 * n, 0, 0))))
    folder = (f"data.uri={tmp_path}/images", "data.caption_column=label", "data.id_column=''", "data.label_columns=[]",
              "concepts=[{name: red, prompt: red, without_prompt: a square, samples: 1}]")  # fmt: skip
    assert world.audit(tmp_path / "store", "preflight=true", *folder).code == 0


def test_a_preflight_finds_what_an_audit_would_stumble_over(world, tmp_path, capsys):
    none = altered(world, tmp_path / "none", lambda rows: [row.update(caption="") for row in rows])
    with pytest.raises(ValueError, match=r"not one sample of .* can be used; the first is rejected for no_caption"):
        world.audit(tmp_path / "store", "preflight=true", f"data.uri={none}")
    model = shutil.copytree(world.root / "latents", tmp_path / "model")
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"] = np.full_like(tensors["conv_out.bias"], np.inf)
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_out.bias has weights that are not finite"):
        world.audit(tmp_path / "store", "preflight=true", f"model.path={model}", "model.batch=1")
    assert {name.split("/")[0] for name in files_under(tmp_path / "store")} == {"sources"}, (
        "more than the index is left"
    )


def test_buckets_give_features_in_the_order_of_the_rows(world, tmp_path):
    """Every second image is wide: batches hold two sizes, each computed with its own kind."""

    def widen(rows):
        for row in rows[::2]:
            row["image"]["bytes"] = encoded(Image.new("RGB", (48, 16), (200, 0, 0)))

    data = altered(world, tmp_path / "data", widen)
    exact = ("model.precision=float64", "feature.dtype=float32")
    sizes = "data.buckets=[[16,16],[16,48]]"
    found = world.audit(tmp_path / "store", f"data.uri={data}", sizes, *exact)
    ids, _, phi = found.features()
    assert ids == [f"shapes-{n:06d}" for n in range(16)]
    _, _, plain = world.audit(tmp_path / "plain", f"data.uri={data}", *exact).features()
    square = np.linalg.norm(phi[1::2] - plain[1::2], axis=1) / np.linalg.norm(plain[1::2], axis=1)
    assert square.max() < 1e-6, "an image of the model's own size is changed by its batch mates of other sizes"
    assert (np.linalg.norm(phi[::2] - plain[::2], axis=1) > 1e-3 * np.linalg.norm(plain[::2], axis=1)).all()


def test_the_same_image_under_another_id_is_flagged_in_the_results(world, tmp_path, capsys):
    def copy(rows):
        rows[5]["image"] = rows[2]["image"]
        rows[9]["image"] = rows[2]["image"]

    found = world.audit(tmp_path / "store", f"data.uri={altered(world, tmp_path / 'data', copy)}")
    for end in ("top", "bottom"):
        ranks = {row["sample_id"]: row for row in found.top(end=end)}
        same = sorted((ranks[f"shapes-{n:06d}"] for n in (2, 5, 9)), key=lambda row: row["rank"])
        assert [row["duplicate_of"] for row in same] == ["", *[same[0]["sample_id"]] * 2]
        assert sum(bool(row["duplicate_of"]) for row in ranks.values()) == 2
