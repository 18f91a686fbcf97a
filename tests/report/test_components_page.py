"""The page of a components run: drawings are where the numbers say, and no text in the data can change the page."""

import random
import re
from itertools import pairwise

import pytest
import torch

from concept_trak.attribution.by_layer import block_of
from concept_trak.components.dose_response import contact_sheet, sheet_rows
from concept_trak.data.decode import decode_image
from concept_trak.data.image import to_tensor
from concept_trak.report.components_page import (
    LABEL_GAP,
    ComponentsPage,
    ConceptSection,
    DoseResponse,
    Layer,
    PictureRow,
    PresenceCurve,
    RandomAblation,
    alpha_bar,
    cloud,
    dose_chart,
    render_components,
)
from concept_trak.report.render import inline
from tests.report.outline import parse
from tests.report.pages import draw
from tests.report.test_render import HOSTILE

LAYERS = (Layer("mid_block.a", 4, 0.3, 0.1), Layer(HOSTILE, 5, -0.2), Layer("b", 6, 0.0, 0.0))


def page(name: str = "red") -> ComponentsPage:
    rng = random.Random(0)
    curves = (
        PresenceCurve("green", (1.0, 0.99), False, True),
        PresenceCurve(name, (0.9, 0.1), True, True),
        PresenceCurve("circle", (1.0, 0.97), False, False),
    )
    rows = tuple(
        PictureRow(text, text.startswith("a red"), (draw("circle", "red", rng), draw("circle", "blue", rng)))
        for text in ("a red circle", HOSTILE)
    )
    whole = ConceptSection(
        name=name,
        prompts=(("a red circle", "a circle"), (HOSTILE, "")),
        j=0.02,
        moves=0.1,
        trajectories=4,
        states=36,
        tensors=LAYERS,
        blocks=LAYERS[:1],
        responses=tuple(DoseResponse(kind, (0.0, 0.01), (0, 1234), curves) for kind in ("alpha", "random")),
        columns=("unchanged", "1,234 changed"),
        rows=rows,
        ablations=(RandomAblation(0.01, -1.0, 0.5, 2.0), RandomAblation(0.1, 0.5, -1.0, 0.0)),
        pearson={kind: {"0.01": 0.25, "all": -0.5} for kind in ("frozen", "recomputed")},
    )
    bare = ConceptSection(
        name="bare", prompts=(("x", ""),), j=0.0, moves=0.0, trajectories=1, states=9, tensors=LAYERS, blocks=LAYERS
    )
    return ComponentsPage("first", HOSTILE, "erase", 1000, "global", (whole, bare))


def test_the_page_is_sound_and_what_is_written_stays_text():
    document = parse(render_components(page()))
    assert not document.all("script"), "a caption became a script: autoescape is off somewhere"
    ids = [e.attributes["id"] for e in document.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids)), "an id stands twice, so an anchor leads to the wrong place"
    assert {link.attributes["href"][1:] for link in document.all("a")} <= set(ids), "a link leads nowhere"
    for element in document.all():
        for name in ("src", "href"):
            assert re.match(r"#|data:|$", element.attributes.get(name, "")), f"{name} leads out of the page"
    levels = [int(e.tag[1]) for e in document.all() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels)), f"a level is left out: {levels}"
    assert not re.search(r"\b(nan|inf|none|undefined)\b", document.all("main")[0].text, re.I)
    assert render_components(page()) == render_components(page()), "equal pages give different text"


def test_every_picture_stands_beside_its_prompt_in_its_column():
    section = page().sections[0]
    rows = parse(render_components(page())).all("table", "drawn")[0].all("tbody")[0].all("tr")
    for element, row in zip(rows, section.rows, strict=True):
        assert [image.attributes["src"] for image in element.all("img")] == [inline(s) for s in row.strips]
        assert ("own" in element.classes) == row.target, "the prompts that name the concept are not told apart"


def response(*presences: tuple[float, ...]) -> DoseResponse:
    curves = tuple(PresenceCurve(str(i), presence, i == 1, i < 3) for i, presence in enumerate(presences))
    return DoseResponse("alpha", (0.0,) * len(presences[0]), tuple(range(len(presences[0]))), curves)


def test_curves_and_bars_lie_where_the_numbers_say():
    (curve,) = dose_chart(response((1.0, 0.25, 0.0))).curves
    assert curve.points == ((0, 0), (50, 75), (100, 100))
    assert [(dot.x, dot.y, dot.title) for dot in curve.dots][1] == (50, 75, "0: 0.250")
    assert dose_chart(response((0.5,))).curves[0].points == ((0, 50),)
    assert alpha_bar(LAYERS[0], LAYERS) == {"x": 50, "width": 37.5, "low": 75, "high": 100}
    assert alpha_bar(LAYERS[1], LAYERS) == {"x": 25, "width": 25, "low": 25, "high": 25}
    assert alpha_bar(LAYERS[2], (LAYERS[2],)) == {"x": 50, "width": 0, "low": 50, "high": 50}
    ablations = page().sections[0].ablations
    assert cloud(ablations, "frozen") == [(2, 26, 0), (74, 98, 1)]
    assert cloud(ablations, "recomputed") == [(2, 2, 0), (74, 50, 1)]


def test_the_concepts_own_curve_is_on_top_in_the_accent_and_the_other_factor_is_dashed():
    curves = dose_chart(response(*[(1.0, i / 4) for i in range(5)])).curves
    assert [curve.name.split()[0] for curve in curves] == ["1", "0", "2", "3", "4"]
    assert [(curve.hue, curve.lead) for curve in curves] == [(0, True), (1, False), (2, False), (3, False), (4, False)]
    assert [curve.dashed for curve in curves] == [False, False, False, True, True]


@pytest.mark.parametrize("ends", [(1.0,) * 6, (0.0,) * 6, (1.0, 0.99, 0.5, 0.01, 0.0, 0.0)])
def test_names_of_curves_never_lie_on_each_other_nor_outside(ends):
    labels = sorted(curve.label for curve in dose_chart(response(*[(end,) for end in ends])).curves)
    assert all(below - above >= LABEL_GAP - 0.001 for above, below in pairwise(labels)), labels
    assert 0 <= labels[0] <= labels[-1] <= 100


def test_blocks():
    assert block_of("up_blocks.1.attentions.0.to_q.weight") == "up_blocks.1"
    assert (block_of("mid_block.resnets.0.conv1.weight"), block_of("conv_in.bias")) == ("mid_block", "conv_in")


def test_a_sheet_falls_into_its_strips():
    pictures = {pair: torch.rand(3, 3, 8, 8).round() * 2 - 1 for pair in (("a", "x"), ("a", "y"))}
    for data, row in zip(sheet_rows(contact_sheet(pictures), 2), pictures.values(), strict=True):
        assert torch.equal(to_tensor(decode_image(data)), torch.cat(list(row), 2)), "another pair's pictures"
