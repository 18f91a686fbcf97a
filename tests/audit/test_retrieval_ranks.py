"""Rankings that are graded in ranges of scores: the same numbers as one sort of everything, to the last digit."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from concept_trak.attribution import ranking
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.audit import retrieval_ranks
from concept_trak.audit.mapper import serial
from concept_trak.audit.retrieval_ranks import FORMS, column, graded_concepts, retrieval_metrics, showing, shows_column
from concept_trak.audit.worker import Work
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.store.manifest import Audit, graded_file, write_table
from concept_trak.store.store import Store

RED = Concept("red", prompt="red", without_prompt="", truth={"colour": "red"})
ODD = Concept("odd", prompt="odd", without_prompt="")
CONFIG = AuditConfig(
    audit="a", data=DataConfig(label_columns=("colour",)), methods={"trak": METHODS["trak"]}, concepts=(RED, ODD),
    scores="all",
)  # fmt: skip


def graded_at_once(ids: np.ndarray, score: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """As it was done before: everything in one process."""
    ranked = relevant[np.lexsort((ids, -score))].tolist()
    return {
        "average_precision": ranking.average_precision(ranked),
        "base_rate": ranking.base_rate(ranked),
        "precision_at_10": ranking.precision_at(ranked, 10),
        "recall_at_carriers": ranking.recall_at_carriers(ranked),
    }


def grade(folder: Path, ids: np.ndarray, scores: np.ndarray, relevant: np.ndarray, cuts: list[int]) -> dict:
    """`scores` [n, 2] in tables that end at the cuts, graded by the workers."""
    config = replace(CONFIG, store=str(folder))
    audit, edges = Audit(Store(config.store), config.audit), sorted({0, *cuts, len(ids)})
    tables = tuple(f"shard-{first:03d}" for first in edges[:-1])
    for name, (first, last) in zip(tables, pairwise(edges), strict=True):
        own = slice(first, last)
        columns = {column("red", form): scores[own, i] for i, form in enumerate(FORMS)}
        table = {"sample_id": ids[own].tolist(), **columns, shows_column("red"): relevant[own]}
        write_table(audit, graded_file("trak", name), pa.table(table))
    work = Work(config, {})
    carriers = {("trak", "red"): int(relevant.sum())}
    return retrieval_metrics(
        config, {"trak": tables}, {"trak": len(ids)}, carriers, lambda *task: serial(task[0], task[1], work, task[2])
    )["red"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.tuples(st.integers(-3, 3), st.integers(-99, 99), st.booleans()), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 59), max_size=4),
    together=st.sampled_from([1, 7, 1000]),
)
def test_ranges_give_what_one_sort_gives(tmp_path_factory, values, cuts, together):
    """Small whole numbers in the first column, so that ties are many."""
    ids = np.array([f"s{(i * 37) % 61:02d}" for i in range(len(values))])
    scores = np.array([v[:2] for v in values], np.float32)
    relevant = np.array([v[2] for v in values])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_ranks, "RANGE_ROWS", together)
        graded = grade(tmp_path_factory.mktemp("a"), ids, scores, relevant, [c for c in cuts if c < len(ids)])
    for i, form in enumerate(FORMS):
        expected = graded_at_once(ids, scores[:, i], relevant)
        measured = graded[column("trak", form)]
        assert measured.pop("average_precision") == pytest.approx(expected.pop("average_precision"), rel=1e-14)
        assert measured == expected


def test_one_range_gives_the_same_digits(tmp_path):
    draw = np.random.default_rng(0)
    ids = np.array([f"s{i:05d}" for i in draw.permutation(5000)])
    scores, relevant = draw.normal(size=(5000, 2)).astype(np.float32), draw.random(5000) < 0.1
    graded = grade(tmp_path, ids, scores, relevant, [1000, 1001, 4000])
    assert graded == {column("trak", f): graded_at_once(ids, scores[:, i], relevant) for i, f in enumerate(FORMS)}


def test_who_shows_a_concept():
    known = pa.table({"label.colour": ["red", None, "blue", "red"], "label.shape": ["a", "a", "a", "b"]})
    two = replace(RED, truth={"colour": "red", "shape": "a"})
    assert showing(known, RED).to_pylist() == [True, False, False, True]
    assert showing(known, two).to_pylist() == [True, False, False, False]


def test_only_what_can_be_graded_is():
    assert graded_concepts(CONFIG) == [RED]
    assert graded_concepts(replace(CONFIG, scores="top")) == []
    assert retrieval_metrics(replace(CONFIG, scores="top"), {}, {}, {}, lambda *_: iter(())) == {}
