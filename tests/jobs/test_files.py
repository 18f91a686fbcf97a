"""The files of a finished audit, as somebody finds them who has never seen this project."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import duckdb
import pyarrow.parquet as pq
import yaml

from concept_trak.attribution.method import METHODS, PUBLISHED, RECOMMENDED
from concept_trak.audit.prepare import outcome_settings
from concept_trak.config import AuditConfig, build, plain_values
from concept_trak.report.build_audit_page import others, row_status
from jobs.configure import CONF
from tests.report.outline import parse

HINTS = {"manifest.json", "progress.json"}  # the manifest cannot list itself; progress is replaced all the time


def test_the_manifest_lists_every_file_with_its_size_and_hash(baseline):
    manifest = baseline.manifest
    there = {p.relative_to(baseline.folder).as_posix() for p in baseline.folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == there - HINTS
    everything = {f"audits/first/{name}": entry for name, entry in manifest["files"].items()}
    everything |= {part["name"]: part for part in manifest["parts"]}
    for name, entry in everything.items():
        data = (baseline.store / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"]), name
    on_storage = {p.relative_to(baseline.store).as_posix() for p in (baseline.store / "features").rglob("*.parquet")}
    assert {part["name"] for part in manifest["parts"]} == on_storage
    assert sum(part["rows"] for part in manifest["parts"]) == 48
    assert (manifest["audit"], set(manifest["settings"]["fingerprints"])) == ("first", {"caption_trak"})


def test_the_hints_point_at_the_audit(baseline):
    latest = json.loads((baseline.store / "audits/latest.json").read_text())
    assert latest == {"audit": "first", "finished": baseline.manifest["finished"]}
    progress = json.loads((baseline.folder / "progress.json").read_text())
    stages = progress["stages"]
    assert list(sorted(stages)) == [
        "aggregate", "featurize", "gram", "ids", "index", "look", "query", "rank", "score", "solve"
    ]  # fmt: skip
    assert progress["stage"] == "look"
    assert all(stage["done"] == stage["of"] and stage["seconds_left"] == 0 for stage in stages.values())
    assert (stages["featurize"]["of"], stages["featurize"]["samples"]) == (6, 48)
    assert stages["score"]["samples"] == 48
    assert stages["featurize"]["samples_per_second"] > 0


def test_commits_say_what_the_parts_hold(baseline):
    for path in (baseline.store / "features").rglob("commits/*.json"):
        record = json.loads(path.read_text())
        part = (path.parent.parent / "parts" / f"{path.stem}.parquet").read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(part), hashlib.sha256(part).hexdigest())
        assert (record["rows"], record["rejected"], record["attempt"]) == (8, 0, 1)
        assert record["host"]
        assert record["seconds"] > 0


def test_duckdb_reads_the_results(baseline):
    folder = baseline.folder
    with duckdb.connect() as connection:
        best = connection.execute(
            f"SELECT sample_id, caption, shape, percentile FROM read_parquet('{folder}/top.parquet') "
            "WHERE concept = 'triangle' AND form = 'damped' AND \"end\" = 'top' ORDER BY rank LIMIT 3"
        ).fetchall()
        ranked = connection.execute(
            f"SELECT sample_id FROM read_parquet('{folder}/caption_trak/scores/*.parquet') "
            "ORDER BY triangle DESC, sample_id LIMIT 3"
        ).fetchall()
        rejects = connection.execute(f"SELECT reason, count(*) FROM '{folder}/rejects.parquet' GROUP BY 1").fetchall()
        rows = connection.execute(f"SELECT sum(rows) FROM '{folder}/plan.parquet'").fetchone()
    assert [row[0] for row in best] == [row[0] for row in ranked]
    assert best[0][3] == 100
    assert all(shape in caption for _, caption, shape, _ in best)
    assert (rejects, rows) == ([], (48,))


def test_every_row_of_top_is_the_sample_it_names(baseline):
    for row in baseline.top()[:5] + baseline.top(end="bottom")[:5]:
        source = pq.read_table(row["source"].removeprefix("file://")).to_pylist()[row["row"]]
        assert (source["id"], source["caption"], source["colour"]) == (row["sample_id"], row["caption"], row["colour"])
        assert baseline.scores()[row["sample_id"]] == row["score"]


def test_the_saved_configuration_is_the_one_that_ran(world, baseline):
    saved = yaml.safe_load((baseline.folder / "audit.yaml").read_text())
    assert saved.pop("fingerprints") == baseline.manifest["settings"]["fingerprints"]
    again = build(AuditConfig, saved)
    assert outcome_settings(plain_values(again)) == saved, "what a run is told changes when it is saved and read"
    assert again.methods == world.config(baseline.store).methods
    assert again.concepts == world.config(baseline.store).concepts


def test_the_page_says_which_row_it_is_and_what_the_published_and_the_recommended_cost(world, baseline):
    text = parse((baseline.folder / "report.html").read_text()).text
    for row, what in ((PUBLISHED, "published"), (RECOMMENDED, "recommended")):
        cost = f"it takes {METHODS[row].train.evaluations} network evaluations per sample."
        assert f"The {what} method is {row}. This audit did not use it; {cost}" in text
    assert [one.method for one in others({PUBLISHED: METHODS[PUBLISHED]})] == [RECOMMENDED]
    changed = replace(METHODS[RECOMMENDED], unit=False)
    assert row_status(RECOMMENDED, METHODS[RECOMMENDED]) == "recommended"
    assert row_status(RECOMMENDED, changed) == row_status("trak", METHODS["trak"]) == "", "it is another row then"


def test_a_latent_model_is_audited_by_the_documented_command(world, tmp_path):
    """A relative of Stable Diffusion: a VAE, texts of 8 tokens and not 77, cross attention alone, as a process."""
    arguments = world.arguments(tmp_path, "model.parameters=cross_attention", data="few")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-m", "jobs.audit", *arguments],
        cwd=CONF.parent, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == f"report     {tmp_path}/audits/first/report.html"
    assert (tmp_path / "audits/first/report.html").read_text().startswith("<!DOCTYPE html>")
    assert re.search(r"attributable parameters in \d+ tensors \(cross_attention\)", process.stdout), process.stdout
