"""A finished audit read back: what was written comes back checked, and what is not finished or altered is refused."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from concept_trak import UserError
from concept_trak.audit import finished_audit
from concept_trak.audit.finished_audit import FinishedAudit, open_audit
from concept_trak.store import manifest
from concept_trak.store.codec import Part
from concept_trak.store.identity import FeatureSet
from concept_trak.store.manifest import Audit
from concept_trak.store.part import Damaged
from concept_trak.store.queries import StoredQuery, write_query
from concept_trak.store.records import Record, commit_part
from concept_trak.store.store import Store
from concept_trak.store.tables import from_rows

IDS, K = ("img-0", "img-1", "img-2", "img-3"), 8
PHI = np.random.default_rng(0).normal(size=(4, K)).astype(np.float32)
TOP = {"concept": "string", "method": "string", "form": "string", "end": "string", "rank": "int32",
       "sample_id": "string", "score": "float32"}  # fmt: skip
PLAN = [
    {"shard": f"s-{i}", "source": "a.parquet", "version": "v1", "first_row": 2 * i, "rows": 2} for i in range(2)
]  # fmt: skip


def ranking(form: str) -> list[dict]:
    """Scores 0 to 3 by the number of the image, from either end."""
    ends = {"top": (3, 2, 1, 0), "bottom": (0, 1, 2, 3)}
    return [
        {"concept": "red", "method": "concept_trak", "form": form, "end": end, "rank": rank,
         "sample_id": IDS[i], "score": float(i)}
        for end, order in ends.items() for rank, i in enumerate(order, 1)
    ]  # fmt: skip


def begun(folder: Path) -> tuple[Audit, list[Record]]:
    """An audit of two shards that lacks only its results."""
    audit = Audit(Store(str(folder)), "demo")
    settings = {
        "methods": {"concept_trak": {}},
        "concepts": [{"name": "red"}],
        "fingerprints": {"concept_trak": "f00d"},
    }
    manifest.begin_audit(audit, settings, PLAN)
    weight = np.ones(2, np.float32)
    parts = [Part("f00d", f"s-{i}", IDS[2 * i : 2 * i + 2], weight, PHI[2 * i : 2 * i + 2], ()) for i in range(2)]
    return audit, [commit_part(audit.store, part, "float32", "binary", 0.0, 1, "here") for part in parts]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """`results/` with the finished audit `demo`, from the folder above it."""
    audit, records = begun(tmp_path / "results")
    manifest.write_table(audit, "top.parquet", from_rows(TOP, ranking("damped") + ranking("plain")))
    manifest.write_table(audit, "rejects.parquet", from_rows({"method": "string", "sample_id": "string"}, []))
    manifest.write_json(audit, "metrics.json", {"samples": 4})
    query = StoredQuery(
        concept="red", method="concept_trak", phi=PHI[0], solved=PHI[1],
        residual=0.0, lam=1.0, spread_solved=1.0, spread_phi=1.0,
    )  # fmt: skip
    write_query(audit, query)
    files = ["audit.yaml", "plan.parquet", "top.parquet", "rejects.parquet", "metrics.json"]
    files.append(manifest.query_file("concept_trak", "red"))
    for i, record in enumerate(records):
        numbers = {"red": "float32", "red~plain": "float32"}
        rows = [{"sample_id": name, "red": float(2 * i + j), "red~plain": 0.5}
                for j, name in enumerate(IDS[2 * i : 2 * i + 2])]  # fmt: skip
        files.append(manifest.scores_file("concept_trak", record.shard))
        manifest.write_table(audit, files[-1], from_rows({"sample_id": "string", **numbers}, rows))
    manifest.finish_audit(audit, files, records * 2, {"fingerprints": {"concept_trak": "f00d"}})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


@pytest.fixture
def audit(folder: Path) -> FinishedAudit:
    return open_audit("results", "demo")


def test_the_examples_of_the_docstrings_run(folder: Path):
    tests = doctest.DocTestFinder().find(finished_audit, globs={"open_audit": open_audit})
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert (runner.summarize().failed, runner.tries >= 6) == (0, True)


def test_rankings_come_by_concept_method_form_end_and_rank(audit: FinishedAudit):
    assert audit.top().num_rows == 4, "by default the damped top"
    assert audit.top("red", "concept_trak", form=None).num_rows == 8
    assert audit.top(end="bottom", form="plain", n=2)["sample_id"].to_pylist() == ["img-0", "img-1"]
    for wrong, message in (
        ({"concept": "blue"}, "concept='blue': expected one of red"),
        ({"method": "trak"}, "method='trak': expected one of concept_trak"),
        ({"form": "sharp"}, "form='sharp': expected one of damped, plain"),
        ({"end": "middle"}, "end='middle': expected one of top, bottom"),
    ):
        with pytest.raises(UserError, match=message):
            audit.top(**wrong)


def test_features_are_what_was_committed_and_each_part_comes_once(audit: FinishedAudit):
    """The manifest of this audit lists its parts twice, as those of two methods that share their features."""
    blocks = list(audit.features())
    assert [i for block in blocks for i in block.ids] == list(IDS)
    np.testing.assert_allclose(np.concatenate([block.phi() for block in blocks]), PHI, rtol=1e-6)
    assert not blocks[0].unit.flags.owndata, "the features were copied"


def test_scores_queries_rejects_metrics_and_settings(audit: FinishedAudit):
    assert audit.scores()["red"].to_pylist() == [0.0, 1.0, 2.0, 3.0]
    (query,) = audit.queries("red").to_pylist()
    np.testing.assert_array_equal(np.float32(query["phi"]), PHI[0])
    assert audit.rejects.num_rows == 0
    assert audit.metrics == {"samples": 4}
    assert audit.settings["concepts"] == [{"name": "red"}]
    assert repr(audit).startswith("open_audit('/")


@pytest.mark.parametrize("name", ["top.parquet", "metrics.json", "audit.yaml", "concept_trak/scores/s-1.parquet"])
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_file_that_is_not_the_one_written_is_refused_by_name(folder: Path, name: str, how: str):
    path = folder / "audits/demo" / name
    if how == "gone":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    audit = open_audit(str(folder), "demo")
    with pytest.raises(Damaged, match=rf"audits/demo/{name} .*jobs.verify"):
        [audit.top(), audit.metrics, audit.settings, audit.scores()]


def test_a_part_that_is_not_the_one_scored_is_refused_by_name(folder: Path, audit: FinishedAudit):
    other = Part("f00d", "s-1", IDS[2:], np.ones(2, np.float32), -PHI[2:], ())
    (folder / FeatureSet("f00d").part("s-1")).unlink()
    (folder / "features/f00d/commits/s-1.json").unlink()
    commit_part(Store(str(folder)), other, "float32", "binary", 0.0, 1, "here")
    with pytest.raises(Damaged, match=r"features/f00d/parts/s-1.parquet was truncated or altered"):
        list(audit.features())


def test_what_is_not_finished_has_a_remedy(folder: Path, tmp_path):
    with pytest.raises(UserError, match=r"has no audit 'typo'; `python -m jobs.status` lists those"):
        open_audit("results", "typo")
    with pytest.raises(UserError, match="has no audit 'demo'"):
        open_audit(str(tmp_path / "nowhere"), "demo")
    unfinished, _ = begun(tmp_path / "other")
    with pytest.raises(UserError, match="audit demo is not finished; run its command again"):
        open_audit(unfinished.store.uri, "demo")
    unfinished.store.create(unfinished.name(manifest.GIVEN_UP), b"{}")
    with pytest.raises(UserError, match=r"is being removed by jobs.gc"):
        open_audit(unfinished.store.uri, "demo")


@pytest.mark.parametrize(
    "data",
    [b"{", b"[]", b"{}", b"[" * 100_000, b'{"files": {"../../x": {"size": 1, "sha256": ""}}, "parts": []}',
     b'{"files": {}, "parts": [3], "settings": {}, "finished": ""}',
     b'{"files": {}, "parts": [], "settings": {}, "finished": 3}'],
    ids=["cut", "list", "empty", "deep", "upwards", "part", "time"],
)  # fmt: skip
def test_a_damaged_manifest_is_named(folder: Path, data: bytes):
    (folder / "audits/demo/manifest.json").write_bytes(data)
    with pytest.raises(Damaged, match=r"audits/demo/manifest.json is damaged"):
        open_audit("results", "demo")


def test_ends_alone_and_other_kinds_of_audits_say_what_they_lack(tmp_path):
    audit, records = begun(tmp_path)
    manifest.finish_audit(audit, ["audit.yaml", "plan.parquet"], records, {"fingerprints": {"concept_trak": "f00d"}})
    done = open_audit(str(tmp_path), "demo")
    with pytest.raises(UserError, match=r"kept the ends of its rankings .* scores=all"):
        done.scores()
    with pytest.raises(UserError, match=r"audit demo has no top.parquet: its manifest does not list"):
        done.top()


def test_it_needs_no_torch_and_no_ray(folder: Path):
    code = (
        "import sys; from concept_trak.audit.finished_audit import open_audit; a = open_audit('results', 'demo');"
        "a.top(), a.scores(), list(a.features()), a.queries();"
        "print([m for m in ('torch', 'ray', 'hydra', 'omegaconf', 'pandas') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder.parent,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
    )  # fmt: skip
    assert ran.stdout.strip() == "[]", ran.stderr
