"""The page of a benchmark says what the tables say, neutrally, and nothing written in a name can change what it is."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from concept_trak.data.benchmarks.two_factors import SHAPES2
from concept_trak.evaluation.leaderboard import Leaderboard, Ranker
from concept_trak.report.benchmark_page import (
    LABEL_HEIGHT,
    as_text,
    dataset_result,
    merit_chart,
    outcome,
    render_benchmark,
    signed_text,
)
from concept_trak.report.chart import HUES
from tests.report import leaderboards
from tests.report.outline import Element, parse
from tests.report.test_browser import CHROMIUM, visit
from tests.report.test_render import luminance

HOSTILE = """<script>alert(1)</script>" onload='x' style="}&amp;{{ 7 * 7 }}</style>"""


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    return leaderboards.leaderboard()


@pytest.fixture(scope="module")
def pages(board) -> dict[str, Element]:
    """Documents of benchmarks that lack or overdo something."""
    small = leaderboards.leaderboard(SHAPES2)
    lone = [row for row in leaderboards.grades(SHAPES2) if row["model"] == leaderboards.MODELS[0]]
    inside = tuple(replace(cell, held_out=False) for cell in small.cells)
    few = [r for r in leaderboards.grades(SHAPES2) if r["damping"] == math.inf]
    evaluations = small.evaluations
    documents = {
        "two sets": leaderboards.two(),
        "none": (),
        "one model": (leaderboards.build_leaderboard("alone", lone, small.cells, small.reference, evaluations),),
        "nothing held out": (
            leaderboards.build_leaderboard(
                "inside", leaderboards.grades(SHAPES2), inside, small.reference, evaluations
            ),
        ),
        "only plain": (leaderboards.build_leaderboard("plain", few, small.cells, small.reference, evaluations),),
        "no flipped": (replace(small, lines=tuple(line for line in small.lines if not line.ranker.flipped)),),
    }
    return {name: parse(render_benchmark(tables)) for name, tables in documents.items()}


NAMES = ("two sets", "none", "one model", "nothing held out", "only plain", "no flipped")


@pytest.mark.parametrize("name", NAMES)
def test_every_page_is_sound(pages, name) -> None:
    document = pages[name]
    ids = [element.attributes["id"] for element in document.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids)), f"an id stands twice: {sorted(ids)}"
    anchors = [link.attributes["href"] for link in document.all("a")]
    assert {anchor[1:] for anchor in anchors} <= set(ids), "a link leads nowhere"
    labelled = {e.attributes[k] for e in document.all() for k in ("aria-labelledby",) if k in e.attributes}
    assert labelled <= set(ids), f"a label that is not there: {labelled - set(ids)}"
    levels = [int(element.tag[1]) for element in document.all() if re.fullmatch("h[1-6]", element.tag)]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels)), f"a level is left out: {levels}"
    assert all("scope" in cell.attributes for cell in document.all("th")), "a heading of a table without its scope"
    assert not re.search(r"\b(nan|inf|none|undefined)\b", document.all("body")[0].text, re.IGNORECASE)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched_and_nothing_runs(pages, name) -> None:
    for element in pages[name].all():
        assert element.tag not in ("script", "iframe", "object"), f"<{element.tag}> in a page that needs none"
        assert not [key for key in element.attributes if key.startswith("on")]
        for key in ("src", "href", "srcset", "xlink:href", "action", "data"):
            assert re.match(r"#|data:|$", element.attributes.get(key, "")), f"{key} leads out of the page"
        assert "url(" not in element.attributes.get("style", "")
    assert not any(re.search(r"url\(|@import|https?:|//", style.text) for style in pages[name].all("style"))
    policy = next(m for m in pages[name].all("meta") if "http-equiv" in m.attributes).attributes["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_what_captions_name_is_a_table_of_its_own(pages, board) -> None:
    assert "By what captions name" not in pages["two sets"].text
    first, second, *others = board.lines
    known = [replace(first, gain_named=0.5, gain_unnamed=0.125, unnamed_gap=(0.01, 0.375)),
             replace(second, gain_named=0.25, gain_unnamed=0.25, unnamed_gap=(-0.25, -0.02))]  # fmt: skip
    changed = replace(board, lines=(*known, *others))
    document = parse(render_benchmark([changed]))
    table = document.all("table", "leaderboard")[1]
    assert not table.inside("details")
    rows = [[cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")]
    assert [row[:2] for row in rows] == [["+0.250", "+0.250"], ["+0.500", "+0.125"]], (
        "not the best of the unnamed first"
    )
    assert "| +0.250 | +0.250 | -0.250 to -0.020 |" in as_text(changed)


def test_what_is_written_in_a_name_stays_text(board) -> None:
    ranker = Ranker(HOSTILE, "own")
    lines = tuple(
        replace(line, ranker=ranker) if line.ranker == Ranker("concept_a", "own") else line for line in board.lines
    )
    curves = {ranker if a == Ranker("concept_a", "own") else a: curve for a, curve in board.curves.items()}
    evaluations = board.evaluations | {HOSTILE: 7}
    hostile = replace(board, title=HOSTILE, models=(HOSTILE,), lines=lines, curves=curves, evaluations=evaluations)
    document = parse(render_benchmark([hostile]))
    assert not document.all("script")
    assert HOSTILE in document.all("h2")[0].text
    assert HOSTILE in [code.text for code in document.all("code")]


def test_the_table_has_every_ranking_and_its_numbers(pages, board) -> None:
    first, second = [t for t in pages["two sets"].all("table", "leaderboard")][:2]
    assert second.inside("details"), "a sign chosen on the answer stands among the methods"
    assert not first.inside("details")
    shown = [line for line in board.lines if not line.ranker.flipped]
    flipped = [line for line in board.lines if line.ranker.flipped]
    for table, lines in ((first, shown), (second, flipped)):
        rows = table.all("tbody")[0].all("tr")
        assert [row.all("th")[0].text for row in rows] == [str(line.ranker) for line in lines], (
            "not every ranking, best first"
        )
        for row, line in zip(rows, lines, strict=True):
            cells = [cell.text for cell in row.all("td")]
            assert cells[0] == signed_text(line.merit)
            assert cells[3:9] == [
                *(signed_text(v, 2) for v in line.gain), *(f"{v:.2f}" for v in (*line.precision, *line.recall))
            ]  # fmt: skip
            own = board.evaluations[line.ranker.method]
            assert cells[10] == (f"{own:,}" if own else "–")
            assert cells[11] == (f"{own / board.evaluations['fit_trak']:.3g}" if own else "–")
            if line.ranker != board.reference:
                assert cells[12] == f"{signed_text(line.gap[0])} to {signed_text(line.gap[1])}"


def test_a_perfect_cell_and_a_lost_one_are_both_seen(board) -> None:
    """The ranking that never changes: perfect in one cell, worthless in the other."""
    constant = replace(board.lines[0], ranker=Ranker("random", "none"), cells=(0.66, -0.3) * 9, merit=-0.3)
    lines = tuple(constant if line.ranker == constant.ranker else line for line in board.lines)
    document = parse(render_benchmark([replace(board, lines=lines)]))
    rows = document.all("table", "spreads")[0].all("tbody")[0].all("tr")
    (strip,) = [row.all("svg")[0] for row in rows if row.all("th")[0].text == "random"]
    places = [float(mark.attributes["cx"].rstrip("%")) for mark in strip.all("circle")]
    assert len(places) == 18
    assert max(places) - min(places) > 50
    assert len(strip.all("circle", "out")) == 2
    assert "worst −0.30, best +0.66" in strip.all("title")[0].text


@pytest.mark.parametrize(
    ("gap", "models", "expected", "words"),
    [
        ((0.1, 0.2), (0.1, 0.2, 0.3), "better", "finds the concept better than the best baseline"),
        ((0.1, 0.2), (0.1, -0.1, 0.4), "mixed", "the models do not agree on the sign"),
        ((0.1, 0.2), (0.1, 0.0, 0.4), "mixed", "the models do not agree on the sign"),
        ((-0.1, 0.2), (0.1, 0.2, 0.3), "open", "is not settled"),
        ((0.0, 0.2), (0.1, 0.2, 0.3), "open", "is not settled"),
        ((-0.3, -0.1), (-0.1, -0.2, -0.3), "worse", "finds the concept less well than the best baseline"),
        ((-0.3, -0.1), (0.1, -0.2, -0.3), "mixed", "the models do not agree on the sign"),
    ],
)
def test_the_headline_claims_no_more_than_was_found(board, gap, models, expected, words) -> None:
    best = dataset_result(board).best
    changed = replace(best, gap=gap, gap_per_model=models)
    assert outcome(changed) == expected
    lines = tuple(changed if line.ranker == best.ranker else line for line in board.lines)
    headline = parse(render_benchmark([replace(board, lines=lines)])).all("p", "outcome")[0].text
    assert words in headline
    assert f"{signed_text(gap[0])} to {signed_text(gap[1])}" in headline
    assert ", ".join(signed_text(v, 2) for v in models) in headline


def test_who_is_above_the_reference_is_named(pages) -> None:
    notes = [note.text for note in pages["two sets"].all("p", "note")]
    assert any("higher merit than the reference: lookup (" in note for note in notes)
    assert any("There is one model" in note.text for note in pages["one model"].all("p", "note"))


def test_the_drawing_is_true_to_the_curves(board) -> None:
    shown = dataset_result(board).lines
    d = merit_chart(board, shown)
    assert {curve.name for curve in d.curves} == {str(line.ranker) for line in shown}, "a ranking is not drawn"
    heights = [(m, y) for curve, line in zip(d.curves, shown, strict=True) for m, (_, y) in
               zip(dict(sorted(board.curves[line.ranker].items())).values(), curve.points, strict=True)]  # fmt: skip
    slopes = [(y - d.y_ticks[0][1]) / (m - d.y_ticks[0][0]) for m, y in heights]
    assert max(slopes) == pytest.approx(min(slopes), rel=0.01), "merits are not drawn to one scale"
    assert max(slopes) < 0, "upside down"
    assert all(0 <= x <= 100 and 0 <= y <= 100 for curve in d.curves for x, y in curve.points)
    xs = dict(d.x_ticks)
    assert xs[1.0] - xs[0.01] == pytest.approx(xs[100.0] - xs[1.0], abs=0.02), "the axis is not logarithmic"
    assert xs[math.inf] == max(xs.values())
    for curve, line in zip(d.curves, shown, strict=True):
        assert curve.name == str(line.ranker)
        (dot,) = curve.dots
        assert (dot.x, dot.y) in curve.points
        assert dot.x == xs[line.damping], "the dot is not at the damping chosen"
    labels = sorted(curve.label for curve in d.curves)
    assert min(b - a for a, b in pairwise(labels)) >= 100 * LABEL_HEIGHT / d.height - 0.02, "labels overlap"
    assert 0 < labels[0] < labels[-1] < 100


def test_few_colours_and_the_first_for_the_reference(board) -> None:
    d = merit_chart(board, dataset_result(board).lines)
    hues = {curve.name: curve.hue for curve in d.curves}
    assert hues[str(board.reference)] == 0
    assert [curve.name for curve in d.curves if curve.lead] == [str(board.reference)]
    assert all(hue < HUES for hue in hues.values())
    assert hues["trak"] == hues["trak, concept query"], "one method in two colours"
    assert {hues[str(line.ranker)] for line in board.lines if line.ranker.query_kind == "none"} == {-1}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_curve_and_its_name_can_be_read(pages, scheme) -> None:
    """Contrast of WCAG 2.2, 1.4.3: the names of curves are words in their colour."""
    styles = [style.text for style in pages["none"].all("style")]
    paper = re.findall(r"--paper: #(\w{6})", styles[0])[scheme]
    rule = re.findall(r":root \{ (--hue0[^}]*)\}", styles[1])[scheme]
    hues = re.findall(r"--hue\d: #(\w{6})", rule)
    assert len(set(hues)) == HUES
    for hue in hues:
        low, high = sorted((luminance(hue), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"#{hue} on #{paper} is too faint"


def test_numbers_carry_their_sign() -> None:
    assert [signed_text(v) for v in (0.25, -0.25, 0.0, -0.0001, math.nan)] == [
        "+0.250",
        "−0.250",
        "0.000",
        "0.000",
        "–",
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program `chromium` on PATH")
@pytest.mark.parametrize("width", [420, 1400])
def test_a_browser_draws_the_curves_without_a_complaint(tmp_path, board, width) -> None:
    image, console = visit(render_benchmark([board]), tmp_path / "page", width)
    assert image.width == width
    colours = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24) or []}
    assert (0x0B, 0x64, 0x70) in colours, "the reference's curve is not on the page"
    assert console == [], "the browser complains"
