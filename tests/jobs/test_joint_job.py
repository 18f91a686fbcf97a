"""The command: what an audit scored is split to rounding, new questions alike, and what cannot be split is refused."""

import re
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from concept_trak.attribution.concept import Concept
from concept_trak.audit.answer import Answer
from concept_trak.audit.answer_layers import AnswerSplit
from concept_trak.audit.finished_audit import open_audit
from concept_trak.audit.kept_features import KeepingBudget
from concept_trak.audit.questions import MovedModel, Questions
from concept_trak.audit.shared_pass import SolvedQuestion
from concept_trak.audit.worker import StoreWorker
from concept_trak.config import WorkerSettings
from concept_trak.report.publish_answer import describe, layer_lines, write_answer
from concept_trak.store.store import Store
from jobs.joint import JointConfig, joint
from serving.listen import ServeConfig
from serving.replicas import ReplicatedQuestions, serve_plan
from tests.jobs.test_serve_replicas import in_this_process
from tests.jobs.world import Found
from tests.report.outline import parse
from tests.tolerances import SCORE16

TRIANGLE = Concept("triangle", prompt="a red triangle", without_prompt="red", samples=2)
"""The concept of the audit."""


@pytest.fixture(scope="module")
def masked(world, tmp_path_factory) -> Found:
    return world.audit(tmp_path_factory.mktemp("masked"), "projector=mask", model="pixels")


@pytest.fixture(scope="module")
def answer(masked) -> Answer:
    return Questions(open_audit(str(masked.store), masked.audit), worker=WorkerSettings()).ask([TRIANGLE], top=100)


def test_the_layers_of_a_sample_sum_to_its_score(masked, capsys):
    assert "joint.parquet" in masked.manifest["files"], "the audit did not split its own scores"
    page = parse((masked.folder / "report.html").read_text())
    said = [e.text for e in page.all("summary") if e.text.startswith("Through which layers")]
    assert len(said) == 2, "damped and plain"
    assert joint(JointConfig(str(masked.store), masked.audit)) == 0
    assert "triangle by caption_trak: of the top's scores, " in capsys.readouterr().out
    key = '(concept, method, form, "end", rank)'
    layers = f"SELECT {key[1:-1]}, sum(score) AS score FROM '{masked.folder}/joint.parquet' GROUP BY ALL"
    sums = duckdb.sql(f"SELECT t.score, j.score FROM '{masked.folder}/top.parquet' t JOIN ({layers}) j USING {key}")
    assert sums is not None
    rows = sums.fetchall()
    assert len(rows) == len(masked.top()) * 4, "two ends of two forms"
    size = max(abs(score) for score, _ in rows)
    assert all(abs(a - b) <= SCORE16 * size for a, b in rows), "layers do not sum to the score"
    assert joint(JointConfig(str(masked.store), masked.audit)) == 0, "the same again is no conflict"


def test_an_answer_to_a_new_question_is_split_as_the_audit_splits_it(masked, answer):
    """The concept of the audit, asked anew: the same layers with the same bits, and the same parts on the page."""
    own = pq.read_table(masked.folder / "joint.parquet")
    assert answer.layers.schema.equals(own.schema)
    assert answer.layers.to_pylist() == own.to_pylist()
    sums = answer.layers.group_by(["form", "end", "rank"], use_threads=False).aggregate([("score", "sum")])
    score = {(row["form"], row["end"], row["rank"]): row["score"] for row in answer.table.to_pylist()}
    size = max(map(abs, score.values()))
    assert len(score) == sums.num_rows
    for row in sums.to_pylist():
        assert abs(row["score_sum"] - score[row["form"], row["end"], row["rank"]]) <= SCORE16 * size


def test_an_answer_is_written_with_its_layers_and_names_the_strongest(masked, answer, tmp_path):
    (line,) = layer_lines(answer, "triangle")
    names = [
        part.part
        for part in answer.results.layers.strongest(
            "caption_trak", "triangle", "damped", answer.top()["sample_id"].to_pylist()
        )
    ]
    assert re.findall(r"[ ,] ([a-z_.0-9]+) -?[0-9]+%", line) == names
    assert line in list(describe(answer))
    assert write_answer(answer, Store(str(tmp_path))) == ["top.parquet", "report.html", "joint.parquet"]
    assert pq.read_table(tmp_path / "joint.parquet").equals(answer.layers)
    assert "Through which layers: most through " in (tmp_path / "report.html").read_text()


def test_features_that_are_kept_or_shared_between_processes_are_split_alike(masked, answer, tmp_path, monkeypatch):
    results = open_audit(str(masked.store), masked.audit)
    solved = SolvedQuestion(answer.run, answer.results.queries, answer.results.solutions, {})
    for budget in (KeepingBudget(memory=10**9), KeepingBudget(disk=10**9, folder=str(tmp_path))):
        keeping = Questions(results, MovedModel(), WorkerSettings(), budget)
        (tally,) = keeping.rank([solved])
        monkeypatch.setattr(StoreWorker, "blocks", lambda *parts: pytest.fail("a kept part was read"))
        assert keeping.answer(solved, tally).layers.equals(answer.layers)
        monkeypatch.undo()
    plan = serve_plan(ServeConfig(store=str(masked.store), audit=masked.audit, replicas=3))
    send, split = in_this_process(plan), list[set[str]]()

    def sent(name: str, task: Any) -> Any:
        reply = send(name, task)
        if isinstance(task, AnswerSplit):
            split.append({sample for *_, sample in reply.result})
        return reply

    shared = ReplicatedQuestions(plan.front.settings, sent)
    (tally,) = shared.rank([solved])
    assert shared.answer(solved, tally).layers.equals(answer.layers)
    assert all(split), "a share split none of its samples"
    assert sum(map(len, split)) == len(set().union(*split)) == 48, "two shares split a sample"


def test_what_cannot_be_split_is_refused(baseline):
    with pytest.raises(ValueError, match="mixes all layers"):
        joint(JointConfig(str(baseline.store), baseline.audit))
    with pytest.raises(ValueError, match="audit is empty"):
        joint(JointConfig(str(baseline.store)))
