"""Numbers from grades to lines: every one in its index, and none counted on the queries that chose the damping."""

import math

import numpy as np
import pytest

from concept_trak.data.benchmarks.two_factors import SHAPES2
from concept_trak.evaluation.leaderboard import (
    Ranker,
    RankerMeasures,
    best_baseline,
    build_leaderboard,
    choose_damping,
    collect_measures,
    leaderboard_lines,
)
from concept_trak.evaluation.retrieval import cells, interval_of_difference
from tests.report.leaderboards import row

CELLS = cells(SHAPES2)
MODELS = ("m0", "m1")
OURS, TRAK = Ranker("fit_trak", "own"), Ranker("trak", "own")


def placed(ranker: Ranker, m: int, q: int, c: int, damping: float) -> float:
    """An AP that says where it belongs."""
    return 0.1 * m + 0.01 * q + 0.001 * c + 0.3 * (damping == 1.0) + 0.5 * (ranker == OURS)


def rows_of(rankers=(OURS, TRAK), queries: int = 4, ap=placed) -> list[dict]:
    return [
        row(ranker, model, cell, q, damping, ap(ranker, m, q, c, damping), base=0.25)
        for damping in (100.0, 1.0)
        for q in reversed(range(queries))
        for c, cell in reversed(list(enumerate(CELLS)))
        for m, model in enumerate(MODELS)
        for ranker in rankers
    ]


def test_every_number_is_put_in_its_place():
    measures = collect_measures(rows_of(), MODELS, CELLS)
    assert set(measures) == {OURS, TRAK}
    for ranker, by_damping in measures.items():
        assert set(by_damping) == {1.0, 100.0}
        for damping, measured in by_damping.items():
            for index in np.ndindex(2, 4, len(CELLS)):
                ap = placed(ranker, *index, damping)
                assert measured.gain[index] == pytest.approx(ap - 0.25), "AP - base rate of another index"
                assert measured.precision[index] == round(ap, 1)
                assert measured.recall[index] == pytest.approx(0.9 * ap)


@pytest.mark.parametrize("missing", [0, 17, -1])
def test_a_grade_that_is_missing_is_no_zero(missing):
    rows = rows_of()
    del rows[missing]
    with pytest.raises(AssertionError, match=r"(trak|fit_trak) at damping 1(00)? lacks grades of some model"):
        collect_measures(rows, MODELS, CELLS)


def measured(even: float, odd: float) -> RankerMeasures:
    values = np.full((2, 6, len(CELLS)), even)
    values[:, 1::2] = odd
    return RankerMeasures(values, values, values, values, values)


def test_the_damping_is_chosen_on_even_queries_alone():
    assert choose_damping({1.0: measured(0.2, 0.9), 100.0: measured(0.3, 0.1)}) == 100.0, "odd queries helped to choose"
    assert choose_damping({1.0: measured(0.2, 0.0), math.inf: measured(0.2, 0.9)}) == math.inf, (
        "the strongest of equals"
    )
    assert choose_damping({1.0: measured(0.2, 0.0), 10.0: measured(0.1, 0.9), math.inf: measured(0.1, 0.9)}) == 1.0


def test_the_numbers_are_those_of_the_odd_queries():
    grades = {OURS: {1.0: measured(0.2, 0.9), 100.0: measured(0.3, 0.1)}, TRAK: {1.0: measured(0.9, 0.05)}}
    first, second = leaderboard_lines(grades, CELLS, OURS)
    assert (first.ranker, first.damping) == (OURS, 100.0)
    for number in (first.merit, *first.per_model, *first.cells, *first.gain, *first.precision, *first.recall):
        assert number == pytest.approx(0.1), "an even query, on which the damping was chosen, is counted"
    assert second.merit == pytest.approx(0.05)
    assert second.gap == pytest.approx((0.05, 0.05))
    assert second.gap_per_model == pytest.approx((0.05, 0.05))
    assert first.gap == (0.0, 0.0)


def test_a_line_tells_in_from_out_and_names_its_worst_cell():
    values = np.zeros((2, 4, len(CELLS)))
    values[..., :] = np.arange(len(CELLS)) / 10
    values[1] += 1.0
    other = np.zeros_like(values)
    unnamed = values / 8
    unnamed[..., 0] = np.nan  # a cell whose captions all name the concept
    grades = {
        OURS: {1.0: RankerMeasures(values, values / 2, values / 4, values / 5, unnamed)},
        TRAK: {1.0: RankerMeasures(other, other, other, other, other)},
    }
    line, other_line = leaderboard_lines(grades, CELLS, OURS)
    out = [i for i, c in enumerate(CELLS) if c.held_out]
    inside = [i for i in range(len(CELLS)) if i not in out]
    assert len(out) == 2
    assert line.worst == CELLS[0].name
    assert line.per_model == pytest.approx((0.0, 1.0))
    assert line.merit == pytest.approx(min(line.cells)) == pytest.approx(0.5)
    for pair, factor in ((line.gain, 1), (line.precision, 2), (line.recall, 4)):
        expected = [(0.5 + np.mean(side) / 10) / factor for side in (inside, out)]
        assert pair == pytest.approx(expected), "in and out of distribution are mixed up"
    assert line.gain_named == pytest.approx(0.1 + np.arange(len(CELLS)).mean() / 50)
    assert line.gain_unnamed == pytest.approx((0.5 + np.arange(1, len(CELLS)).mean() / 10) / 8)
    expected = interval_of_difference(unnamed[:, 1::2, 1:], other[:, 1::2, 1:], over=np.mean)
    assert other_line.unnamed_gap == expected
    assert other_line.gap == interval_of_difference(values[:, 1::2], other[:, 1::2])
    assert other_line.gap_per_model == pytest.approx((0.0, 1.0))


def test_without_a_held_out_cell_there_is_no_number_out_of_distribution():
    inside = [c for c in CELLS if not c.held_out]
    values = np.full((2, 4, len(inside)), 0.5)
    (line,) = leaderboard_lines({OURS: {1.0: RankerMeasures(values, values, values, values, values)}}, inside, OURS)
    assert line.gain[0] == 0.5
    assert math.isnan(line.gain[1])


def test_the_baseline_to_beat_is_unflipped_and_a_baseline():
    skill = {
        Ranker("lookup", "none"): 0.9,
        Ranker("caption_trak", "own"): 0.8,
        Ranker("trak", "own", 1): 0.7,
        Ranker("d_trak", "concept"): 0.6,
        Ranker("pixels", "none"): 0.5,
        OURS: 0.4,
    }
    rows = rows_of(tuple(skill), ap=lambda ranker, *_: skill[ranker])
    board = build_leaderboard("set", rows, CELLS, OURS, dict.fromkeys([a.method for a in skill], 1))
    assert [line.ranker for line in board.lines] == list(skill), "not best first"
    assert best_baseline(board.lines).ranker == Ranker("d_trak", "concept")
    assert board.models == MODELS
    assert board.queries == 4
    assert board.base_rates == (0.25,) * len(CELLS)


def test_a_curve_is_the_merit_over_all_queries():
    board = build_leaderboard("set", rows_of(), CELLS, OURS, {"fit_trak": 12, "trak": 27})
    mean = np.mean([[placed(TRAK, m, q, 0, 1.0) for m in (0, 1)] for q in range(4)]) - 0.25
    assert board.curves[TRAK][1.0] == pytest.approx(mean)
    assert list(board.curves[TRAK]) == [1.0, 100.0]


def test_rankers_are_told_apart_in_words():
    assert [str(a) for a in (TRAK, Ranker("trak", "concept"), Ranker("trak", "own", 1), Ranker("pixels", "none"))] == [
        "trak", "trak, concept query", "trak, sign flipped", "pixels"
    ]  # fmt: skip
