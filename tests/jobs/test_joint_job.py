"""The command: what an audit scored is split to rounding, and what cannot be split is refused."""

import duckdb
import pytest

from jobs.joint import JointConfig, joint
from tests.report.outline import parse
from tests.tolerances import SCORE16


def test_the_layers_of_a_sample_sum_to_its_score(world, tmp_path, capsys):
    found = world.audit(tmp_path / "store", "projector=mask", model="pixels")
    assert "joint.parquet" in found.manifest["files"], "the audit did not split its own scores"
    page = parse((found.folder / "report.html").read_text())
    said = [e.text for e in page.all("summary") if e.text.startswith("Through which layers")]
    assert len(said) == 2, "damped and plain"
    assert joint(JointConfig(str(tmp_path / "store"), "first")) == 0
    assert "triangle by caption_trak: of the top's scores, " in capsys.readouterr().out
    key = '(concept, method, form, "end", rank)'
    layers = f"SELECT {key[1:-1]}, sum(score) AS score FROM '{found.folder}/joint.parquet' GROUP BY ALL"
    sums = duckdb.sql(f"SELECT t.score, j.score FROM '{found.folder}/top.parquet' t JOIN ({layers}) j USING {key}")
    assert sums is not None
    rows = sums.fetchall()
    assert len(rows) == len(found.top()) * 4, "two ends of two forms"
    size = max(abs(score) for score, _ in rows)
    assert all(abs(a - b) <= SCORE16 * size for a, b in rows), "layers do not sum to the score"
    assert joint(JointConfig(str(tmp_path / "store"), "first")) == 0, "the same again is no conflict"


def test_what_cannot_be_split_is_refused(baseline):
    with pytest.raises(ValueError, match="mixes all layers"):
        joint(JointConfig(str(baseline.store), baseline.audit))
    with pytest.raises(ValueError, match="audit is empty"):
        joint(JointConfig(str(baseline.store)))
