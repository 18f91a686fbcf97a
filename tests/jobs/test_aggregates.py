"""Which source, label and word taught it: the tables hold what a loop over every score and row of the data finds."""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.executor import Attempt
from concept_trak.audit import heavy_groups
from concept_trak.audit.aggregate import LEAST, RARER, SHOWN, AggregateTask, AggregateWorker, memberships, sums_table
from concept_trak.audit.plan import shards
from concept_trak.audit.score import ScoreWorker, score_tasks
from concept_trak.audit.worker import Work
from concept_trak.config import DataConfig
from concept_trak.data.captions import caption_words
from concept_trak.data.index import count_groups, indexed_rows, schema
from concept_trak.data.survey import survey
from concept_trak.store.compaction import committed
from concept_trak.store.identity import FeatureSet
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


def test_the_same_sums_however_the_parts_are_cut(world: World, baseline: Found, tmp_path):
    """Scored again into a copy of the audit, a part at a time: other tables of sums, the same result to rounding."""
    config = world.config(baseline.store, "audit=first")
    fp = baseline.manifest["settings"]["fingerprints"]["caption_trak"]
    plan = shards(survey(config.data).sources, 8)
    records = list(committed(Store(str(baseline.store)), FeatureSet(fp), [s.planned for s in plan]).values())
    queries = baseline.folder / "caption_trak/queries"
    (tmp_path / "audits/first/caption_trak").mkdir(parents=True)
    (tmp_path / "audits/first/caption_trak/queries").symlink_to(queries)
    (tmp_path / "features").symlink_to(baseline.store / "features")
    work = Work(replace(config, store=str(tmp_path)), {"caption_trak": FeatureSet(fp)})
    items, worker = list(score_tasks("caption_trak", records, plan, most=1)), ScoreWorker(work)
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
    shown = done.groups["triangle"]
    assert [s.name for s in shown["label"]] == [
        f"{r['label']} = {r['value']}" for r in told(baseline, "label") if r["form"] == "damped"
    ][:SHOWN]
    assert all(s.samples >= LEAST for s in shown["word"])


def known_rows(*rows: tuple[str, str | None]) -> pa.Table:
    """The index of samples with this caption, and this label `shape`."""
    words = [sorted(caption_words(caption)) for caption, _ in rows]
    return pa.table(
        {"label.shape": pa.array([shape for _, shape in rows], pa.string()), "words": words},
        schema=pa.schema([schema(DataConfig(label_columns=("shape",))).field(n) for n in ("label.shape", "words")]),
    )


def test_sums_by_hand():
    values = np.array([[1.0, -2.0], [3.0, 4.0], [-5.0, 6.0]], np.float32)
    known = known_rows(("a red a", "x"), ("red", None), ("", "x"))
    groups = list(memberships(known, [("f", 2), ("g", 1)], None))
    rows = {
        (r["kind"], r["label"], r["value"]): list(r.values())[3:]
        for r in sums_table(["a", "b"], values, groups).to_pylist()
    }
    assert rows == {
        ("source", "", "f"): [2, 4, 2, 10, 20, 4, 4],
        ("source", "", "g"): [1, -5, 6, 25, 36, 0, 6],
        ("label", "shape", "x"): [2, -4, 4, 26, 40, 1, 6],
        ("word", "", "a"): [1, 1, -2, 1, 4, 1, 0],
        ("word", "", "red"): [2, 4, 2, 10, 20, 4, 4],
    }
    empty = sums_table(["a"], values[:0, :1], list(memberships(known.slice(0, 0), [("f", 0)], None)))
    assert (empty.num_rows, empty.column_names) == (
        0,
        ["kind", "label", "value", "samples", "sum:a", "square:a", "positive:a"],
    )


def test_what_is_rare_shares_a_row_in_which_a_sample_counts_once():
    values = np.array([[1.0], [10.0], [100.0]], np.float32)
    known = known_rows(("a b c", "x"), ("a", "y"), ("b c", None))
    heavy = pa.table({"kind": ["word", "label"], "label": ["", "shape"], "value": ["a", "y"], "samples": [2, 1]})
    table = sums_table(["s"], values, list(memberships(known, [("f", 3)], heavy)))
    rows = {(r["kind"], r["label"], r["value"]): (r["samples"], r["sum:s"]) for r in table.to_pylist()}
    assert rows == {
        ("source", "", "f"): (3, 111), ("word", "", "a"): (2, 11), ("word", "", RARER): (2, 101),
        ("label", "shape", "y"): (1, 10), ("label", "", RARER): (1, 1),
    }  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=60), min_size=1, max_size=5), st.integers(1, 8))
def test_whatever_is_frequent_is_kept(parts, most):
    """The guarantee of Misra and Gries, over any way of adding up."""
    words = [str(word) for part in parts for word in part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heavy_groups, "MOST_GROUPS", most)
        tables = [count_groups(known_rows(*((str(word), None) for word in part))) for part in parts]
        kept = heavy_groups.most_frequent(tables)
    assert kept.num_rows <= most
    frequent = {word for word in words if words.count(word) > len(words) / (most + 1)}
    assert frequent <= set(kept["value"].to_pylist())
    if len(set(words)) <= most:
        assert dict(zip(kept["value"].to_pylist(), kept["samples"].to_pylist(), strict=True)) == Counter(words)


def test_words():
    assert caption_words("A red, RED triangle; Stra\u00dfe 2_b.") == {"a", "red", "triangle", "strasse", "2_b"}
    assert caption_words("") == frozenset()


@pytest.mark.parametrize("column", ["", "id"])
def test_ids_are_those_of_the_samples(world: World, column: str):
    """The index holds what Arrow reads of the files themselves."""
    data = DataConfig(str(world.root / "shapes"), id_column=column, label_columns=("shape",))
    for source in survey(data).sources:
        path = source.uri.removeprefix("file://")
        expected = [
            (row["id"] if column else f"{path.rpartition('/')[2]}:{n}", row["caption"], row["shape"])
            for n, row in enumerate(pq.read_table(path).to_pylist())
        ]
        rows = [row for shard in shards([source], 7) for row in indexed_rows(shard)]
        assert [(row.id, row.caption, row.labels["shape"]) for row in rows] == expected


def test_none_are_written_where_none_are_asked_for(world: World, tmp_path):
    found = world.audit(tmp_path, "aggregates=false", f"data.uri={world.root}/few")
    assert found.code == 0
    assert not [name for name in found.manifest["files"] if "/by_" in name or "/sums/" in name]
