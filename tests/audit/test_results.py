"""From what shards say to what people read: tallies, percentiles and metrics against the plain way of counting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.ranking import BINS, SPAN
from concept_trak.audit.results import (
    Tally,
    percentile,
    rejects_by_reason,
    shows,
    top_kinds,
    top_rows,
)
from concept_trak.audit.score import ColumnEnds, ScoreResult
from concept_trak.audit.shown_samples import ShownSample
from concept_trak.config import AuditConfig, DataConfig
from concept_trak.store.records import Record
from concept_trak.store.tables import from_rows
from tests.toys import histogram, top_k


def scored(values: dict[str, float], m: int, shard: str) -> ScoreResult:
    ends = top_k(m, [(score, sample, shard) for sample, score in values.items()])
    counts = histogram(torch.tensor(list(values.values()), dtype=torch.float32), 1.0)
    return ScoreResult("trak", {"red": ColumnEnds(ends.top, ends.bottom, counts)})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 12))
def test_a_tally_is_a_sort_of_everything(parts, m):
    """Whole numbers, so that ties are many."""
    values = {f"s{i}-{j}": float(v) for i, part in enumerate(parts) for j, v in enumerate(part)}
    tally = Tally(m)
    for i in reversed(range(len(parts))):
        tally.add(scored({n: v for n, v in values.items() if n.startswith(f"s{i}-")}, m, f"shard-{i}"))
    ends = tally.ends["trak", "red"]
    assert [e[1] for e in ends.top] == sorted(values, key=lambda n: (-values[n], n))[:m]
    assert [e[1] for e in ends.bottom] == sorted(values, key=lambda n: (values[n], n))[:m]
    assert all(values[sample] == score and shard == f"shard-{sample[1]}" for score, sample, shard in tally.entries())
    edges = np.linspace(-SPAN, SPAN, BINS + 1)
    np.testing.assert_array_equal(tally.histogram["trak", "red"], np.histogram(list(values.values()), edges)[0])


def test_a_percentile_is_the_share_of_samples_that_stand_no_higher():
    scores = np.random.default_rng(0).permutation(37)
    for rank in range(1, 38):
        best, worst = np.sort(scores)[::-1][rank - 1], np.sort(scores)[rank - 1]
        assert percentile(rank, "top", 37) == pytest.approx(100 * np.mean(scores <= best))
        assert percentile(rank, "bottom", 37) == pytest.approx(100 * np.mean(scores <= worst))
    assert (percentile(1, "top", 5), percentile(5, "bottom", 5)) == (100, 100)


def test_a_sample_shows_a_concept_if_every_label_says_so():
    concept = Concept("c", prompt="x", truth={"shape": "circle", "colour": "red"})
    assert shows(concept, {"shape": "circle", "colour": "red", "size": "3"})
    assert not shows(concept, {"shape": "circle", "colour": "blue"})
    assert not shows(concept, {"shape": "circle"})


def test_rejects_add_up_by_reason():
    rest = {
        "rows": 1,
        "bytes": 1,
        "sha256": "",
        "sum_squares": 0.0,
        "seconds": 0.0,
        "attempt": 1,
        "host": "",
        "fingerprint": "",
    }
    reasons = ({"decode": 2}, {}, {"decode": 1, "no_caption": 4})
    records = [Record(shard="s", rejected=sum(r.values()), rejects_by_reason=r, **rest) for r in reasons]
    assert rejects_by_reason(records) == {"decode": 3, "no_caption": 4}


CONFIG = AuditConfig(
    data=DataConfig(id_column="id", label_columns=("shape", "colour")),
    methods={"trak": METHODS["trak"]},
    concepts=(Concept("red", prompt="red", truth={"colour": "red"}), Concept("odd", prompt="odd")),
    scores="all",
    top=2,
)


def test_top_names_each_end_of_each_column():
    entries = [(5.0, "b", "x"), (1.0, "a", "x"), (-2.0, "c", "x")]
    ends = top_k(2, entries)
    tally = Tally(2)
    columns = ("red", "red~plain", "odd", "odd~plain")
    tally.add(ScoreResult("trak", {name: ColumnEnds(ends.top, ends.bottom, [0] * BINS) for name in columns}))
    seen = {n: ShownSample(n, f"a {n}", "file", i, {"shape": "s", "colour": "c"}, b"") for i, n in enumerate("abc")}
    rows = list(top_rows(CONFIG, tally, seen, {"trak": 3}))
    assert len(rows) == 2 * 2 * 2 * 2
    read = [(r["end"], r["rank"], r["sample_id"], r["score"], round(r["percentile"])) for r in rows[:4]]
    assert read == [
        ("top", 1, "b", 5, 100),
        ("top", 2, "a", 1, 67),
        ("bottom", 1, "c", -2, 33),
        ("bottom", 2, "a", 1, 67),
    ]
    assert {(r["concept"], r["form"]) for r in rows} == {(c, f) for c in ("red", "odd") for f in ("damped", "plain")}
    table = from_rows(top_kinds(CONFIG), rows)
    assert table.to_pylist() == rows, "a column is missing from the table's types, or changes on its way"
