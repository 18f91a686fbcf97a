"""Samples that cannot be used: named, counted, and no reason to stop, until they are too many."""

import json

import pyarrow.parquet as pq
import pytest

from tests.jobs.world import altered, files_under


@pytest.fixture
def flawed(world, tmp_path) -> str:
    """16 rows: one image cut off, one that is none, a blank caption, a missing one, one that means nothing."""

    def spoil(rows):
        rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:60]
        rows[2]["image"] = None
        rows[5]["caption"] = "  "
        rows[9]["caption"] = None
        rows[12]["caption"] = "<|endoftext|>"  # tokens of the empty text

    return str(altered(world, tmp_path / "flawed", spoil))


def test_rejects_are_told_apart_and_counts_add_up(world, flawed, tmp_path):
    (tmp_path / "flawed/notes.md").write_text("about these pictures")
    found = world.audit(tmp_path / "store", f"data.uri={flawed}", "budget.rejects=0.5")
    assert found.code == 0
    rows = pq.read_table(found.folder / "rejects.parquet").to_pylist()
    assert [(r["row"], r["reason"]) for r in rows] == [
        (1, "decode"), (2, "decode"), (5, "no_caption"), (9, "no_caption"), (12, "no_direction"),
    ]  # fmt: skip
    assert [r["sample_id"] for r in rows] == [f"shapes-{r['row']:06d}" for r in rows]
    assert all(r["source"].endswith("flawed/train.parquet") and r["message"] and r["method"] for r in rows)

    plan = {r["shard"]: r["rows"] for r in pq.read_table(found.folder / "plan.parquet").to_pylist()}
    parts = {p["shard"]: p["rows"] + p["rejected"] for p in found.manifest["parts"]}
    assert parts == plan, "a sample is neither a feature nor a reject"
    kept = set(found.features()[0])
    assert kept == set(found.scores())
    assert kept | {r["sample_id"] for r in rows} == {f"shapes-{i:06d}" for i in range(16)}
    assert not kept & {r["sample_id"] for r in rows}
    sums = json.loads(pq.read_schema(found.folder / "rejects.parquet").metadata[b"data"])
    assert sums == json.loads((found.folder / "metrics.json").read_text())["data"]
    assert sums["samples"] == 16 == len(kept) + sum(sums["rejected"].values())
    assert [(entry["count"], entry["kind"]) for entry in sums["left_out"]] == [(1, "file")]
    page = (found.folder / "report.html").read_text()
    assert all(entry in page for entry in ("1 file ending .md", "notes.md"))
    assert all(reason in page for reason in ("decode", "no_caption", "no_direction"))


def test_too_many_rejects_stop_the_run_and_lose_nothing(world, flawed, tmp_path, capsys):
    store = tmp_path / "store"
    assert world.audit(store, f"data.uri={flawed}").code == 3
    said = capsys.readouterr().err
    assert "samples were rejected for caption_trak" in said
    assert "over budget.rejects=0.05" in said
    assert "raise the budget; the finished shards are kept" in said
    assert "decode: shapes-000001 (" in said
    assert "no_caption: shapes-000005 (" in said
    rejects = pq.read_table(store / "audits/first/failures/rejects.parquet").to_pylist()
    assert [row["row"] for row in rejects] == [1, 2, 5]
    assert not (store / "audits/first/manifest.json").exists()
    kept = {n: t for n, t in files_under(store).items() if "/parts/" in n}
    assert len(kept) == 1, "the first shard alone is over the budget"

    assert world.audit(store, f"data.uri={flawed}", "budget.rejects=0.5").code == 0, "a budget is no other setting"
    assert kept.items() <= files_under(store).items(), "a finished shard was done again"
    assert "1 of 2 shards are done, 1 to compute" in capsys.readouterr().out


def test_a_shard_of_rejects_alone_commits_and_a_run_of_them_ends(world, tmp_path, capsys):
    def blank(rows, first):
        for row in rows[first:]:
            row["caption"] = ""

    half = altered(world, tmp_path / "half", lambda rows: blank(rows, 8))
    found = world.audit(tmp_path / "store", f"data.uri={half}", "budget.rejects=0.5")
    assert found.code == 0
    assert [(p["rows"], p["rejected"]) for p in found.manifest["parts"]] == [(8, 0), (0, 8)]
    assert len(found.scores()) == 8

    none = altered(world, tmp_path / "none", lambda rows: blank(rows, 0))
    assert world.audit(tmp_path / "store", f"data.uri={none}", "audit=none", "budget.rejects=1").code == 3
    assert "no sample has a feature for caption_trak: all were rejected (16 no_caption)" in capsys.readouterr().err


def test_a_method_without_a_feature_says_so_and_the_others_answer(world, tmp_path, capsys):
    """Random weights tell no picture from another: every feature of fit_trak is zero, and no number is made up."""
    audit = world.audit(tmp_path, "damping=auto", method="[caption_trak,fit_trak]", data="few")
    assert audit.code == 0
    methods = pq.read_table(audit.folder / "top.parquet")["method"].to_pylist()
    assert set(methods) == {"caption_trak"}, "scores that are all zero are ranked, or others are not"
    assert "as far as fit_trak can tell: every feature is zero" in capsys.readouterr().out
    metrics = json.loads((audit.folder / "metrics.json").read_text())
    assert metrics["methods"]["fit_trak"]["trace"] == 0 < metrics["methods"]["caption_trak"]["trace"]
    assert metrics["methods"]["fit_trak"]["damping"]["reason"] == "every feature is zero"
    for measures in metrics["concepts"].values():
        assert {name.partition("~")[0] for name in measures} == {"caption_trak"}, "equal scores are graded"
    page = (audit.folder / "report.html").read_text()
    assert "as far as fit_trak can tell: every feature is zero" in page
    assert "as far as caption_trak can tell" not in page
