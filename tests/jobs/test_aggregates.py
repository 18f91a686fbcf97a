"""Which source, label and word taught it: the tables hold what a loop over every score and row of the data finds."""

import math
from collections import defaultdict
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.executor import Attempt
from concept_trak.audit import score
from concept_trak.audit.aggregate import LEAST, SHOWN, AggregateTask, AggregateWorker, Sums, groups_of, sums_table
from concept_trak.audit.plan import shards
from concept_trak.audit.score import ScoreWorker, score_tasks
from concept_trak.audit.worker import Work
from concept_trak.config import DataConfig
from concept_trak.data.columns import Annotation, annotations, caption_words, survey
from concept_trak.data.format import read_rows, sample_id
from concept_trak.data.shard import Shard
from concept_trak.store.identity import FeatureSet
from concept_trak.store.records import committed
from concept_trak.store.store import Store
from tests.jobs.world import Found, World

FLOAT64 = 1e-9  # sums of float32 scores in float64, in another order


def told(found: Found, kind: str) -> list[dict]:
    return pq.read_table(found.folder / "caption_trak" / f"by_{kind}.parquet").to_pylist()


def by_hand(world: World, found: Found) -> dict[tuple[str, str], list[float]]:
    """(kind, name) to the damped scores of its samples, from the source files and scores/ alone."""
    scores, groups = found.scores(), defaultdict(list)
    for path in sorted((world.root / "shapes").iterdir()):
        for row in pq.read_table(path).to_pylist():
            score = scores[row["id"]]
            groups["source", f"file://{path}"].append(score)
            for label in ("shape", "colour"):
                groups["label", f"{label} = {row[label]}"].append(score)
            for word in set(row["caption"].lower().split()):
                groups["word", word].append(score)
    return groups


def test_the_tables_are_what_a_loop_over_everything_gives(world: World, baseline: Found):
    expected, every = by_hand(world, baseline), np.array(list(baseline.scores().values()), np.float64)
    positive = every.clip(min=0).sum()
    seen = set()
    for kind in ("source", "label", "word"):
        for row in (r for r in told(baseline, kind) if r["form"] == "damped"):
            name = f"{row['label']} = {row['value']}" if kind == "label" else row[kind]
            mine = np.array(expected[kind, name], np.float64)
            seen.add((kind, name))
            assert row["samples"] == len(mine), f"{kind} {name}: samples were lost or counted twice"
            assert row["sum"] == pytest.approx(mine.sum(), rel=FLOAT64, abs=FLOAT64 * np.abs(mine).sum())
            assert row["mean"] == pytest.approx(mine.mean(), abs=FLOAT64 * np.abs(mine).sum())
            assert row["deviation"] == pytest.approx(mine.std(), abs=1e-6 * every.std())
            assert row["share"] == pytest.approx(mine.clip(min=0).sum() / positive, rel=1e-6)
            errors = (mine.mean() - every.mean()) / every.std() * math.sqrt(len(mine))
            assert row["errors"] == pytest.approx(errors, abs=1e-5)
    assert seen == set(expected), "a source, label or word is missing, or made up"


def test_every_table_asks_every_question_and_begins_with_who_stands_out(baseline: Found):
    for kind in ("source", "label", "word"):
        rows = told(baseline, kind)
        assert {(r["concept"], r["method"], r["form"]) for r in rows} == {
            ("triangle", "caption_trak", form) for form in ("damped", "plain")
        }
        for form in ("damped", "plain"):
            errors = [r["errors"] for r in rows if r["form"] == form]
            assert errors == sorted(errors, reverse=True)
    assert sum(r["share"] for r in told(baseline, "source") if r["form"] == "damped") == pytest.approx(1.0)


def test_duckdb_says_which_source(baseline: Found):
    """As the README shows it."""
    with duckdb.connect() as sql:
        best = sql.execute(
            f"SELECT source, samples, mean FROM '{baseline.folder}/*/by_source.parquet' "
            "WHERE concept = 'triangle' AND form = 'damped' ORDER BY mean DESC"
        ).fetchall()
    assert len(best) == 3
    assert [samples for _, samples, _ in best] == [16, 16, 16]


def test_the_same_sums_however_the_parts_are_cut(world: World, baseline: Found, tmp_path, monkeypatch):
    """Scored again into a copy of the audit, a part at a time: other tables of sums, the same result to rounding."""
    config = world.config(baseline.store, "audit=first")
    fp = baseline.manifest["settings"]["fingerprints"]["caption_trak"]
    plan = shards(survey(config.data).sources, 8)
    records = list(committed(Store(str(baseline.store)), FeatureSet(fp), [s.planned for s in plan]).values())
    queries = baseline.folder / "caption_trak/queries"
    (tmp_path / "audits/first/caption_trak").mkdir(parents=True)
    (tmp_path / "audits/first/caption_trak/queries").symlink_to(queries)
    (tmp_path / "features").symlink_to(baseline.store / "features")
    monkeypatch.setattr(score, "SCORED_BYTES", 1)
    work = Work(replace(config, store=str(tmp_path)), {"caption_trak": FeatureSet(fp)})
    items, worker = list(score_tasks("caption_trak", records, plan)), ScoreWorker(work)
    assert len(items) == 6
    for item in items:
        worker(item, Attempt(1, 0))
    done = AggregateWorker(work)(AggregateTask("caption_trak", tuple(r.shard for r in records)), Attempt(1, 0))
    again = Found(tmp_path, "first")
    for kind in ("source", "label", "word"):
        for ours, theirs in zip(told(again, kind), told(baseline, kind), strict=True):
            for key in ("mean", "deviation", "sum", "share", "errors"):
                assert ours.pop(key) == pytest.approx(theirs.pop(key), abs=1e-6)
            assert ours == theirs
    shown = done.shown["triangle"]
    assert [s.name for s in shown["label"]] == [
        f"{r['label']} = {r['value']}" for r in told(baseline, "label") if r["form"] == "damped"
    ][:SHOWN]
    assert all(s.samples >= LEAST for s in shown["word"])


def test_sums_by_hand():
    sums = Sums(["a", "b"])
    one, two = ("word", "", "red"), ("source", "", "x")
    sums.add_scores(np.array([[1.0, -2.0], [3.0, 4.0]], np.float32), [[one, two], [two]])
    sums.add_scores(np.array([[-5.0, 6.0]], np.float32), [[one]])
    sums.add_scores(np.zeros((0, 2), np.float32), [])
    assert {k: v.tolist() for k, v in sums.by_group.items()} == {
        one: [2, -4, 4, 26, 40, 1, 6],
        two: [2, 4, 2, 10, 20, 4, 4],
    }
    table = sums_table(sums).to_pylist()
    assert table[0] == {
        **{"kind": "word", "label": "", "value": "red", "samples": 2, "sum:a": -4.0, "sum:b": 4.0},
        **{"square:a": 26.0, "square:b": 40.0, "positive:a": 1.0, "positive:b": 6.0},
    }
    assert sums_table(Sums(["a"])).num_rows == 0


def test_words_and_groups():
    assert caption_words("A red, RED triangle; Straße 2_b.") == {"a", "red", "triangle", "strasse", "2_b"}
    assert caption_words("") == frozenset()
    shard = Shard("file:///x.parquet", "1", 0, 1)
    assert set(groups_of(Annotation("a red a", {"shape": "None"}), shard)) == {
        ("source", "", "file:///x.parquet"), ("label", "shape", "None"), ("word", "", "a"), ("word", "", "red"),
    }  # fmt: skip


@pytest.mark.parametrize("column", ["", "id"])
def test_ids_are_those_of_the_samples(world: World, column: str):
    data = DataConfig(str(world.root / "shapes"), id_column=column, label_columns=("shape",))
    for shard in shards(survey(data).sources, 7):
        columns = ["id", "caption", "shape"]
        expected = {sample_id(row, data): row.values for row in read_rows(shard, data, columns)}
        found = annotations(shard, data)
        assert {i: (w.caption, w.labels["shape"]) for i, w in found.items()} == {
            i: (v["caption"], v["shape"]) for i, v in expected.items()
        }


def test_none_are_written_where_none_are_asked_for(world: World, tmp_path):
    found = world.audit(tmp_path, "aggregates=false", f"data.uri={world.root}/few")
    assert found.code == 0
    assert not [name for name in found.manifest["files"] if "/by_" in name or "/sums/" in name]
